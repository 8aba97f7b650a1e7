"""Headers of weight files, parsed by hand: names, types, shapes and places, and no byte of the weights.

safetensors: 8 bytes little-endian length n, n bytes of JSON, data. npz: a zip of .npy members, each with its
own header. Everything a header claims is compared with the size of the file before anything is allocated.
"""

from __future__ import annotations

import ast
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import SAEInvalidError
from .config import strict_json
from .layout import Stored

MAX_HEADER_BYTES = 4 << 20
"""An SAE has some ten tensors; the largest real headers carry a training config in their metadata."""
MAX_TENSORS = 4096

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHER_BYTES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_OTHER_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2} | _OTHER_BYTES
_NPY_DTYPES = {"<f8": "float64", "<f4": "float32", "<f2": "float16"}


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file, and what else it says (`extras`: safetensors metadata, scalars of a pickle)."""

    name: str
    tensors: dict[str, Stored]
    extras: dict[str, Any]
    origin: tuple[str | None, tuple[str, ...]] | None = None
    """Repository and path of the file that this one was converted from."""

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.tensors


def identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def bad(name: str, check: str, why: str) -> SAEInvalidError:
    """What is wrong with the file `name`; `check` is the test that failed."""
    return SAEInvalidError(f"{name}: {why}", check=check, file=name)


def read_safetensors(path: Path, name: str) -> TensorFile:
    """Header of the safetensors file `path`, shown to users as `name`."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        prefix = file.read(8)
        if len(prefix) < 8:
            raise bad(name, "header", "the file is shorter than the length of its header")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES or length > status.st_size - 8:
            raise bad(name, "header", f"the header claims {length} bytes of a file of {status.st_size}")
        text = file.read(length)
    if text[:1] != b"{":
        raise bad(name, "header", "this is not a safetensors file")
    header = strict_json(text, name, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad(name, "header", "__metadata__ is not an object of strings")
    if len(header) > MAX_TENSORS:
        raise bad(name, "header", f"{len(header)} tensors")
    data_bytes = status.st_size - 8 - length
    places: list[tuple[int, int]] = []
    tensors: dict[str, Stored] = {}
    for tensor, entry in header.items():
        dtype, shape, begin, end = _entry(name, tensor, entry)
        if end > data_bytes:
            raise bad(name, "truncated", f"{tensor} ends at byte {end} of {data_bytes} bytes of data")
        places.append((begin, end))
        tensors[tensor] = Stored(
            name=tensor,
            dtype=_DTYPES.get(dtype, dtype),
            shape=shape,
            path=path,
            identity=identity(status),
            offset=8 + length + begin,
        )
    at = 0
    for begin, end in sorted(places):
        if begin != at:
            raise bad(name, "header", f"the tensors leave or share bytes at {min(at, begin)}")
        at = end
    if at != data_bytes:
        raise bad(name, "truncated" if at > data_bytes else "header", f"tensors cover {at} of {data_bytes} bytes")
    return _converted(TensorFile(name, tensors, dict(metadata)))


CONVERTED = "sae_actor"
"""Metadata key of what `pickles.convert` could not store as tensors: plain values, and where they came from."""


def _converted(file: TensorFile) -> TensorFile:
    text = file.extras.get(CONVERTED)
    if text is None:
        return file
    note = strict_json(text.encode(), f"{file.name} (metadata)", "header")
    try:
        origin = note["repository_id"], tuple(note["parts"])
        return TensorFile(file.name, file.tensors, dict(note["extras"]), origin)
    except (KeyError, TypeError, ValueError):
        raise bad(file.name, "header", "the note of its conversion is malformed") from None


def _entry(name: str, tensor: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad(name, "header", f"the entry of {tensor[:80]} does not describe a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise bad(name, "dtype", f"{tensor[:80]} has the unknown type {str(dtype)[:20]}")
    if not _whole(shape) or len(shape) > 8 or not _whole(offsets) or len(offsets) != 2:
        raise bad(name, "header", f"shape or place of {tensor[:80]} is malformed")
    size = _BYTES[dtype] * math.prod(shape)
    begin, end = offsets
    if end - begin != size:
        raise bad(name, "header", f"{tensor[:80]} of shape {shape} takes {size} bytes, not {end - begin}")
    return dtype, tuple(shape), begin, end


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


_NPY_HEADER = re.compile(rb"\A\{.*\}\s*\Z", re.DOTALL)
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def read_npz(path: Path, name: str) -> TensorFile:
    """Headers of the arrays in an npz file. Object arrays (pickles) and other types are refused."""
    status = path.stat()
    tensors: dict[str, Stored] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_TENSORS:
                raise bad(name, "header", f"{len(members)} members")
            for member in members:
                tensor = member.filename.removesuffix(".npy")
                if tensor in tensors or not member.filename.endswith(".npy"):
                    raise bad(name, "header", f"member {member.filename[:80]!r} does not belong in an npz file")
                if member.compress_type not in _ZIP_METHODS or member.flag_bits & 1:
                    raise bad(name, "header", f"{tensor} is packed in a way that numpy does not write")
                if member.compress_type == zipfile.ZIP_STORED and member.file_size > status.st_size:
                    raise bad(name, "truncated", f"{tensor} claims {member.file_size} of {status.st_size} bytes")
                with archive.open(member) as data:
                    tensors[tensor] = _npy(name, tensor, data, size=member.file_size, path=path, status=status)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise bad(name, "truncated", f"this is not a whole npz file: {str(error)[:120]}") from None
    return TensorFile(name, tensors, {})


def _npy(name: str, tensor: str, data: Any, *, size: int, path: Path, status: os.stat_result) -> Stored:
    magic = data.read(8)
    if magic[:6] != b"\x93NUMPY" or len(magic) < 8:
        raise bad(name, "header", f"{tensor} is not an npy array")
    width, form = (2, "<H") if magic[6] == 1 else (4, "<I")
    (length,) = struct.unpack(form, data.read(width).ljust(width, b"\0"))
    if length > 1 << 16 or length > size:
        raise bad(name, "header", f"the header of {tensor} claims {length} bytes")
    text = data.read(length)
    if not _NPY_HEADER.match(text):
        raise bad(name, "header", f"the header of {tensor} is malformed")
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise bad(name, "header", f"the header of {tensor} is malformed") from None
    if descr not in _NPY_DTYPES:
        raise bad(name, "dtype", f"{tensor} has the type {str(descr)[:40]}")
    if not isinstance(shape, tuple) or not _whole(list(shape)) or len(shape) > 8:
        raise bad(name, "header", f"the shape of {tensor} is malformed")
    stored = Stored(
        name=tensor,
        dtype=_NPY_DTYPES[descr],
        shape=shape,
        path=path,
        identity=identity(status),
        offset=len(magic) + width + length,
        member=f"{tensor}.npy",
        fortran=bool(fortran) and len(shape) > 1,
    )
    if stored.offset + stored.nbytes != size:
        raise bad(name, "truncated", f"{tensor} of shape {shape} needs {stored.nbytes} bytes, its member differs")
    return stored


def scalar(stored: Stored) -> float:
    """The one number in `stored`, finite or `SAEInvalidError`."""
    form = {"float64": "<d", "float32": "<f", "float16": "<e", "I64": "<q", "I32": "<i", "bfloat16": "<f"}
    if stored.value is not None and stored.count == 1:
        number = float(stored.value)
    elif stored.value is not None or stored.count != 1 or stored.dtype not in form:
        raise bad(stored.path.name, "shape", f"{stored.name} is not one number")
    else:
        with open_stored(stored) as file:
            data = file.read(_BYTES.get(stored.dtype, stored.nbytes))
        data = b"\0\0" + data if stored.dtype == "bfloat16" else data  # the upper half of a float32
        try:
            number = float(struct.unpack(form[stored.dtype], data)[0])
        except struct.error:
            raise bad(stored.path.name, "truncated", f"the file ends inside {stored.name}") from None
    if not math.isfinite(number):
        raise bad(stored.path.name, "finite", f"{stored.name} is not finite")
    return number


def fill(file: BinaryIO, part: memoryview, stored: Stored) -> None:
    """The next bytes of `stored`, all of `part`; `SAEInvalidError` with check `truncated` where the file ends early."""
    at = 0
    while at < len(part):
        got = file.readinto(part[at:])  # type: ignore[attr-defined]  # binary files have it
        if not got:
            raise SAEInvalidError(f"{stored.path.name} ends inside {stored.name}", check="truncated")
        at += got


@contextmanager
def open_stored(stored: Stored) -> Iterator[BinaryIO]:
    """The file of `stored`, at the first byte of its data; `SAEInvalidError` if it is not the one described."""
    with stored.path.open("rb") as file:
        if identity(os.fstat(file.fileno())) != stored.identity:
            raise bad(stored.path.name, "changed", "the file changed after its header was read")
        if stored.member is None:
            file.seek(stored.offset)
            yield file
            return
        try:
            with zipfile.ZipFile(file) as archive, archive.open(stored.member) as member:
                member.seek(stored.offset)
                yield cast(BinaryIO, member)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise bad(stored.path.name, "truncated", f"{stored.name}: {str(error)[:120]}") from None
