"""Pickles converted to safetensors: where the service keeps what a child process of `formats.pickles` wrote.

    hub/converted/<key>/<name>.safetensors   and copies of the settings files that its format reads

The key of a download is a digest over its repository and files, so that SAEs with the same files share it; that of
an import is the SAE's id. The record lists the originals and the converted file, which alone is loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from posixpath import basename, splitext
from typing import TypeVar

from ..domain.refs import SaeFile
from ..domain.state import SaeLocation
from ..formats.files import SaeFiles
from ..formats.pickles import convert
from ..ports.durability import fsync_path
from .digests import Stamp, sha256_of
from .layout import CONVERTED, SHA256, remove_empty, remove_folder
from .protocol import Placed

T = TypeVar("T")

BEAT_SECONDS = 1.0
BEGUN = ".tmp"
"""Ends the name of a folder that is being written, after the key and the id of the process that writes."""


def folder(root: Path, key: str) -> Path:
    return root / CONVERTED / key


def key_of(repository_id: str, originals: Iterable[SaeFile]) -> str:
    """64 hex digits for the files of a download."""
    text = "".join(f"{file.path}\0{file.sha256}\n" for file in sorted(originals, key=lambda file: file.path))
    return hashlib.sha256(f"{repository_id}\n{text}".encode()).hexdigest()


def key_at(location: SaeLocation) -> str | None:
    """The key of an SAE on record; None if nothing was converted."""
    if not location.converted:
        return None
    if location.source == "import":
        return location.sae_id
    return key_of(location.repository_id or "", (file for file in location.files if file.converted_from is None))


def loaded_files(root: Path, location: SaeLocation) -> list[tuple[Path, SaeFile]]:
    """The converted file and the settings next to it, with the record of each; empty if there are none."""
    key = key_at(location)
    if key is None:
        return []
    place, converted = folder(root, key), location.converted
    pickles = {file.converted_from for file in converted}
    kept = [file for file in location.files if file not in converted and file.path not in pickles]
    files = [(place / basename(file.path), file) for file in (*converted, *kept)]
    return [(path, file) for path, file in files if file in converted or path.exists()]


def make(
    files: SaeFiles, pickle: str, into: Path, *, prefix: str = "", working: Callable[[], None] = lambda: None
) -> Placed:
    """Convert `pickle`, a name in `files`, into the folder `into`; what goes on record, its path below `prefix`.

    `working` is called about once a second meanwhile. What is there already is replaced file by file, whole, once
    all of it is written. Raises what `formats.pickles.convert` raises, `SAEInvalidError` (check `link`).
    """
    for name in (pickle, "config.json", f"{splitext(pickle)[0]}_cfg.json"):
        if files.has(name):
            files.resolve(name)  # refuses a link that leaves the folder
    temporary = into.with_name(f"{into.name}.{os.getpid()}{BEGUN}")
    try:
        with ThreadPoolExecutor(1) as thread:
            origin = files.origin
            job = partial(convert, repository_id=origin.repository_id, parts=origin.parts)
            made = _awaited(thread.submit(job, files.folder / pickle, temporary), working)
        into.mkdir(parents=True, exist_ok=True)
        for written in sorted(temporary.iterdir()):
            fsync_path(written)
            written.replace(into / written.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(into)
    # The process that wrote it had read a file that anyone may have made: the digest on record is of what is there.
    target = into / made.name
    stamp = Stamp.of(target)
    path = f"{prefix}{splitext(pickle)[0]}.safetensors"
    file = SaeFile(path, stamp.bytes, sha256_of(target), converted_from=f"{prefix}{pickle}")
    return Placed(file, stamp, str(target))


def _awaited(future: Future[T], working: Callable[[], None]) -> T:
    while not future.done():
        wait([future], timeout=BEAT_SECONDS)
        working()
    return future.result()


def begun(root: Path, key: str) -> list[tuple[Path, int]]:
    """Folders that are, or were, being written for `key`, each with the id of its process."""
    places = (root / CONVERTED).glob(f"{key}.*{BEGUN}")
    found = [(place, place.name.removesuffix(BEGUN).rpartition(".")[2]) for place in places]
    return [(place, int(process)) for place, process in found if process.isdecimal()]


def remove(root: Path, key: str) -> int:
    """Remove what was converted under `key`; returns the bytes freed, 0 if there is nothing."""
    freed = remove_folder(folder(root, key))
    remove_empty(root / CONVERTED, root)
    return freed


def sweep(root: Path, keys: Iterable[str]) -> int:
    """Remove what downloads converted and no claim names, and what was being written; the bytes that became free."""
    wanted = set(keys)
    names = [place.name for place in (root / CONVERTED).glob("*")]
    gone = [name for name in names if name.endswith(BEGUN) or (SHA256.fullmatch(name) and name not in wanted)]
    return sum(remove(root, name) for name in gone)
