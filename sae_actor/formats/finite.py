"""A look at every stored number, without torch: bit patterns of NaN and infinity have all exponent bits set."""

from __future__ import annotations

from ..errors import SAEInvalidError
from .headers import open_stored
from .layout import ITEM_BYTES, Stored

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
    left = stored.count * ITEM_BYTES[stored.dtype]
    with open_stored(stored) as file:
        while left:
            data = file.read(min(left, PIECE_BYTES))
            if not data:
                raise SAEInvalidError(f"{stored.path.name} ends inside {stored.name}", check="truncated")
            while len(data) % ITEM_BYTES[stored.dtype]:
                more = file.read(ITEM_BYTES[stored.dtype] - len(data) % ITEM_BYTES[stored.dtype])
                if not more:
                    raise SAEInvalidError(f"{stored.path.name} ends inside {stored.name}", check="truncated")
                data += more
            left -= len(data)
            bits = np.frombuffer(data, dtype=code)
            if ((bits & bits.dtype.type(exponent)) == exponent).any():
                raise SAEInvalidError(
                    f"{stored.path.name}: {stored.name} has values that are not finite",
                    check="finite",
                    file=stored.path.name,
                )
