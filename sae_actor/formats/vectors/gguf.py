"""Control vectors of repeng and llama.cpp: GGUF with `direction.{layer}`, added to what that block gives.

    "GGUF"  version u32  tensors u64  keys u64
    per key     name, type u32, value            (a string is its length u64 and its bytes)
    per tensor  name, sides u32, sizes u64 …, type u32, offset u64
    data        at the next multiple of general.alignment (32)

All numbers little-endian. repeng counts layers from 0 and wraps that block; llama.cpp adds `direction.N` after its
block N. Both mean resid_post.N.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ...domain.refs import HookPoint
from ..files import SaeFiles
from ..headers import MAX_TENSORS, bad, identity
from ..layout import Layout, Stored
from .found import FoundRow, chosen, layout_of

MAX_KEYS = 4096
MAX_STRING = 1 << 16
MAX_ARRAY = 1 << 20

_NAME = re.compile(r".+\.gguf", re.DOTALL)
_DIRECTION = re.compile(r"direction\.(0|[1-9]\d{0,3})")
_ARCHITECTURE = "controlvector"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPES = {0: ("float32", 4), 1: ("float16", 2), 28: ("float64", 8), 30: ("bfloat16", 2)}


def recognise(files: SaeFiles) -> bool:
    return bool(files.matching(_NAME))


def read(files: SaeFiles) -> Layout:
    name = files.one(_NAME)
    return layout_of(name, chosen(name, _directions(files.resolve(name), name), files.layer))


class _Reader:
    """The head of a GGUF file; whatever it claims is compared with the file before it is believed."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file, self._name, self._size = file, name, size

    def wrong(self, why: str) -> NoReturn:
        raise bad(self._name, "header", why)

    def numbers(self, form: str) -> tuple[Any, ...]:
        data = self._file.read(struct.calcsize(f"<{form}"))
        try:
            return struct.unpack(f"<{form}", data)
        except struct.error:
            raise bad(self._name, "truncated", "the file ends inside its header") from None

    def number(self, form: str) -> Any:
        return self.numbers(form)[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_STRING:
            self.wrong(f"a string of {length} bytes")
        data = self._file.read(length)
        if len(data) < length:
            raise bad(self._name, "truncated", "the file ends inside its header")
        return data.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            self.wrong(f"a value of the unknown type {kind}")
        inner, count = self.numbers("IQ")
        if count > MAX_ARRAY or inner == _ARRAY:
            self.wrong("an array that a control vector does not have")
        for _ in range(count):  # passed over: no array says anything about a vector
            self.value(inner)
        return None

    def at(self, alignment: int) -> int:
        place = self._file.tell()
        return place + -place % alignment


def _directions(path: Path, name: str) -> list[FoundRow]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        reader = _Reader(file, name, status.st_size)
        if file.read(4) != b"GGUF":
            reader.wrong("this is not a GGUF file")
        version, tensors, keys = reader.numbers("IQQ")
        if version not in (2, 3):
            reader.wrong(f"GGUF of version {version}")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            reader.wrong(f"{tensors} tensors and {keys} keys")
        said = {reader.text(): reader.value(reader.number("I")) for _ in range(keys)}
        if said.get("general.architecture") != _ARCHITECTURE:
            raise bad(name, "format", f"a GGUF file of {str(said.get('general.architecture'))[:40]}, no control vector")
        alignment = said.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16:
            reader.wrong("general.alignment is malformed")
        entries = [_entry(reader) for _ in range(tensors)]
        begin = reader.at(alignment)
    hint = said.get("controlvector.model_hint")
    ignored = {"controlvector.model_hint": f"says {str(hint)[:60]}, the kind of model"} if hint else {}
    rows: dict[int, FoundRow] = {}
    for tensor, shape, kind, offset in entries:
        match = _DIRECTION.fullmatch(tensor)
        if match is None or int(match[1]) > 4095:
            raise bad(name, "foreign_tensor", f"{tensor[:60]} is not a direction of a control vector")
        layer = int(match[1])
        if layer in rows:
            raise bad(name, "duplicate_tensor", f"{tensor} is there twice")
        if kind not in _TYPES:
            raise bad(name, "dtype", f"{tensor} has the type {kind}, which is not a plain number")
        dtype, width = _TYPES[kind]
        size = width
        for side in shape:
            size *= side
        if begin + offset + size > status.st_size:
            raise bad(name, "truncated", f"{tensor} ends after the {status.st_size} bytes of the file")
        stored = Stored(tensor, dtype, shape, path, identity(status), begin + offset)
        rows[layer] = FoundRow(tensor, HookPoint("resid_post", layer), layer, stored, ignored)
    if not rows:
        raise bad(name, "missing_tensor", "the control vector has no direction")
    return list(rows.values())


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    tensor = reader.text()
    sides = reader.number("I")
    if sides > 4:
        reader.wrong(f"{tensor[:60]} has {sides} sides")
    shape = tuple(reader.numbers(f"{sides}Q"))
    if any(side > 1 << 24 for side in shape):
        reader.wrong(f"{tensor[:60]} is {list(shape)}")
    kind, offset = reader.numbers("IQ")
    return tensor, shape[::-1], kind, offset
