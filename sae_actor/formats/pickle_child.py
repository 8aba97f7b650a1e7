"""The child process of `pickles.convert`: a job on stdin, one JSON answer on stdout."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import resource
import shutil
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import SAEError, SAEInvalidError
from .config import MAX_CONFIG_BYTES
from .headers import CONVERTED, TensorFile
from .pickles import read_pickle

PIECE_BYTES = 8 << 20
_PR_SET_PDEATHSIG = 1
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    name = Path(job["source"]).name
    _confine(job["memory_limit"], job["parent"])
    answer: dict[str, Any]
    try:
        answer = _convert(job)
    except MemoryError:
        answer = {"check": "memory", "detail": f"{name} needs more memory than it may take"}
    except SAEError as error:
        check = error.fields.get("check", "pickle")
        starved = "can't allocate" in error.detail or "Cannot allocate memory" in error.detail
        answer = {"check": "memory" if starved else check, "detail": error.detail}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        answer = {"check": "no_space" if full else "files", "detail": f"{name}: {error.strerror}"}
    json.dump(answer, sys.stdout)


def _confine(memory_limit: int, parent: int) -> None:
    """Die with the parent, leave no core, and take at most `memory_limit` bytes more than now."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # A parent that confines itself may have handed down less than a large file takes: the limit above holds here.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.getppid() != parent:  # it went away before prctl
        os._exit(1)


def _convert(job: dict[str, Any]) -> dict[str, Any]:
    source, out = Path(job["source"]), Path(job["out"])  # a link stays one: files next to it belong to it
    file = read_pickle(source, source.name)
    out.mkdir(parents=True, exist_ok=True)
    stem = source.name.rpartition(".")[0]
    target = out / f"{stem}.safetensors"
    note = {"repository_id": job["repository_id"], "parts": job["parts"], "extras": _plain(file.extras)}
    part = target.with_suffix(".part")
    with part.open("wb") as written:
        _write(written, file, note)
        written.flush()
        os.fsync(written.fileno())
    for config in ("config.json", f"{stem}_cfg.json"):
        settings = source.parent / config if (source.parent / config).is_file() else None
        if settings is not None and settings.stat().st_size <= MAX_CONFIG_BYTES:
            shutil.copyfile(settings, out / config)
    part.replace(target)
    return {"file": str(target)}


def _write(written: BinaryIO, file: TensorFile, note: dict[str, Any]) -> None:
    """The tensors as safetensors, in pieces."""
    header: dict[str, Any] = {"__metadata__": {CONVERTED: json.dumps(note, allow_nan=False)}}
    at = 0
    for name, stored in file.tensors.items():
        code = _CODES.get(stored.dtype)
        if code is None:
            raise SAEInvalidError(f"{file.name}: {name[:80]} has the type {stored.dtype}", check="dtype")
        size = stored.value.numel() * stored.value.element_size()
        header[name] = {"dtype": code, "shape": list(stored.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    written.write(struct.pack("<Q", len(text)) + text)
    for stored in file.tensors.values():
        rows = stored.value.reshape(stored.value.shape[0] if stored.value.dim() > 1 else 1, -1)
        step = max(1, PIECE_BYTES // max(1, rows.shape[1] * rows.element_size()))
        for piece in rows.split(step) if rows.numel() else ():
            written.write(piece.contiguous().view(torch.uint8).numpy().tobytes())


def _plain(value: Any) -> Any:
    """What JSON can hold of `value`; single numbers out of tensors, null for the rest."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


if __name__ == "__main__":
    main()
