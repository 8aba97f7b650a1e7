"""SAEs as bytes, in the SAELens layout, without torch: what the fake hub publishes."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any


def safetensors(d_in: int = 8, d_sae: int = 32, seed: int = 0) -> bytes:
    """W_enc, b_enc, W_dec, b_dec in float32, with numbers that `seed` chooses."""
    shapes = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + _noise(seed, end)


_BELOW_TWO = bytes(byte & 0xBF for byte in range(256))
"""Clears the highest bit of the exponent."""


def _noise(seed: int, size: int) -> bytes:
    """`size` bytes without a repetition, as finite float32: a random megabyte, marked with its number each time."""
    block = bytearray(random.Random(seed).randbytes((1 << 20) - 8))
    block[3::4] = block[3::4].translate(_BELOW_TWO)
    count = -(-size // (1 << 20))
    return b"".join(struct.pack("<Q", i) + block for i in range(count))[:size]


def config(d_in: int = 8, d_sae: int = 32, layer: int = 1, **more: Any) -> bytes:
    settings = {
        "architecture": "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "model_name": "gpt2-small",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hook_layer": layer,
    }
    return json.dumps({**settings, **more}).encode()


def sae_files(
    path: str = "", *, d_in: int = 8, d_sae: int = 32, layer: int = 1, seed: int = 0, **more: Any
) -> dict[str, bytes]:
    """The two files of one SAE below `path`."""
    prefix = f"{path}/" if path else ""
    return {
        f"{prefix}cfg.json": config(d_in, d_sae, layer, **more),
        f"{prefix}sae_weights.safetensors": safetensors(d_in, d_sae, seed),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
