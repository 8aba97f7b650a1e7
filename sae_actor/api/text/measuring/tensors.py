"""Tensors as a safetensors file, without what would be needed to compute with them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

MEDIA_TYPE = "application/vnd.safetensors"


class Written(Struct, frozen=True):
    """A tensor in memory, little-endian."""

    dtype: Literal["F32", "I64", "BOOL"]
    shape: Sequence[int]
    data: bytes


def safetensors(tensors: Mapping[str, Written], metadata: Mapping[str, str]) -> bytes:
    """The file; wide types first, so that each tensor begins where a reader may map it."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: ("I64", "F32", "BOOL").index(tensors[name].dtype))
    at = 0
    for name in order:
        each = tensors[name]
        header[name] = {
            "dtype": each.dtype, "shape": list(each.shape), "data_offsets": [at, at + len(each.data)]
        }  # fmt: skip
        at += len(each.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[name].data for name in order)])
