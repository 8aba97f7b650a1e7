"""Pickled state dicts: read by torch's restricted reader, or turned into safetensors by a child process.

A pickle is a program. `weights_only=True` runs none of it, but its reader is large and has had holes, so the
service lets a child read it: with no more memory than given, without the service's environment, dead when its parent
dies. What it writes is read again as any other untrusted file.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DiskFullError, SAEInvalidError, SAEUnsupportedError
from .config import MAX_CONFIG_BYTES
from .file_names import CONVERTIBLE
from .headers import TensorFile
from .layout import Stored

MEMORY_LIMIT = 8 << 30
"""Bytes that a conversion may take besides torch itself; the file is mapped, so its size counts."""
TIMEOUT_SECONDS = 900.0


def read_pickle(path: Path, name: str) -> TensorFile:
    """Tensors of the state dict in `path`, its plain values as extras. `SAEInvalidError` (check `pickle`)."""
    import torch  # noqa: PLC0415  # `describe` must work without it

    try:
        # A file of the old, unzipped kind cannot be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything here
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's text says how to run what is in the file
            why = "it is damaged, or holds more than tensors and plain values"
        raise SAEInvalidError(f"{name} cannot be read as weights: {why}", check="pickle", file=name) from None
    if not isinstance(loaded, dict):
        raise SAEInvalidError(f"{name} holds no state dict", check="pickle", file=name)
    tensors: dict[str, Stored] = {}
    extras: dict[str, Any] = {}
    for key, value in _flat(loaded):
        if not isinstance(value, torch.Tensor):
            extras[str(key)] = value
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise SAEInvalidError(f"{name}: {str(key)[:80]} is not a plain tensor", check="pickle", file=name)
        dtype = str(value.dtype).removeprefix("torch.")
        tensors[str(key)] = Stored(str(key), dtype, tuple(value.shape), path, (0, 0, 0), value=value.detach())
    return TensorFile(name, tensors, extras)


def _flat(loaded: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The entries, and of a steering configuration its tensors as entries of their own."""
    import torch  # noqa: PLC0415  # as above

    for key, value in loaded.items():
        if isinstance(value, dict) and isinstance(value.get("steering_vector"), torch.Tensor):
            held = {name: each for name, each in value.items() if isinstance(each, torch.Tensor) and each.dim() > 0}
            yield from ((f"{key}.{name}", each) for name, each in held.items())
            yield str(key), {name: each for name, each in value.items() if name not in held}
        else:
            yield str(key), value


def convert(
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    memory_limit: int = MEMORY_LIMIT,
    timeout_seconds: float = TIMEOUT_SECONDS,
    repository_id: str | None = None,
    parts: Sequence[str] = (),
) -> Path:
    """Write `out_dir/<stem>.safetensors` from the pickle at `path`, and its config next to it; blocks until done.

    Returns the file, which has the same tensor names.

    `repository_id` and `parts` (folders of the path inside the repository) are kept in the new file's metadata,
    for formats that say their place there. Raises `SAEInvalidError` with check `pickle` (not a state dict of
    plain tensors, or the child died), `memory` (more than `memory_limit` bytes), `timeout`; `DiskFullError`.
    """
    source = Path(path)
    if not source.name.endswith(CONVERTIBLE):
        raise SAEUnsupportedError(f"{source.name} is not a state dict", check="pickle", file=source.name)
    job = {
        "source": str(source.absolute()),
        "out": str(Path(out_dir).resolve()),
        "memory_limit": memory_limit,
        "repository_id": repository_id,
        "parts": list(parts),
        "parent": os.getpid(),
    }
    package_root = str(Path(__file__).resolve().parents[2])
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sae_actor.formats.pickle_child"],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=timeout_seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SAEInvalidError(f"{source.name} took too long to convert", check="timeout", file=source.name) from None
    try:
        answer = json.loads(done.stdout[-MAX_CONFIG_BYTES:])
    except ValueError:
        why = f"the child that read it ended with {done.returncode}"
        raise SAEInvalidError(f"{source.name}: {why}", check="pickle", file=source.name) from None
    if answer.get("check") == "no_space":
        raise DiskFullError("The disk is full", reason="no_space", file=source.name)
    if "check" in answer:
        raise SAEInvalidError(answer["detail"], check=answer["check"], file=source.name)
    return Path(answer["file"])
