"""Files of vectors, as other tools write them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_gguf(path: Path, directions: dict[int, Tensor], *, version: int = 3, **changes: Any) -> Path:
    """As repeng's `export_gguf` and llama.cpp's cvector-generator write it; compared with package gguf 0.17."""
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (8, "controlvector"),
        "controlvector.model_hint": (8, "llama"),
        "controlvector.layer_count": (4, len(directions)),
    }
    keys |= changes.get("keys", {})
    names = changes.get("names", {})
    head = b"GGUF" + struct.pack("<IQQ", version, len(directions), len(keys))
    for key, (kind, value) in keys.items():
        head += _string(key) + struct.pack("<I", kind)
        head += _string(value) if kind == 8 else struct.pack("<I", value)
    data = b""
    for layer, row in directions.items():
        name = names.get(layer, f"direction.{layer}")
        kind = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30, torch.int32: 26}[row.dtype]
        head += _string(name) + struct.pack("<IQIQ", 1, row.numel(), kind, len(data))
        data += row.contiguous().view(torch.uint8).numpy().tobytes()
        data += bytes(-len(data) % 32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def write_steering(path: Path, hooks: dict[str, Tensor], **settings: Any) -> Path:
    """As lm-evaluation-harness' `steered` model reads it."""
    said = {"steering_coefficient": 5.0, "action": "add", "bias": None, "head_index": None, **settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({hook: {"steering_vector": row, **said} for hook, row in hooks.items()}, path)
    return path


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
