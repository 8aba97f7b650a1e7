"""A look at every stored number, without torch: bit patterns of NaN and infinity have all exponent bits set."""

from __future__ import annotations

from .headers import bad, fill, open_stored
from .layout import Stored

PIECE_BYTES = 8 << 20

_EXPONENT = {
    "float64": ("<u8", 0x7FF0_0000_0000_0000),
    "float32": ("<u4", 0x7F80_0000),
    "float16": ("<u2", 0x7C00),
    "bfloat16": ("<u2", 0x7F80),
}


def check_finite(stored: Stored) -> None:
    """`SAEInvalidError` with check `finite`, or `truncated` where the file ends early."""
    import numpy as np  # noqa: PLC0415  # `describe` must work without it

    code, exponent = _EXPONENT[stored.dtype]
    buffer = memoryview(bytearray(PIECE_BYTES))
    with open_stored(stored) as file:
        for begun in range(0, stored.nbytes, PIECE_BYTES):
            data = buffer[: stored.nbytes - begun]
            fill(file, data, stored)
            bits = np.frombuffer(data, dtype=code)
            if ((bits & bits.dtype.type(exponent)) == exponent).any():
                raise bad(stored.path.name, "finite", f"{stored.name} has values that are not finite")
