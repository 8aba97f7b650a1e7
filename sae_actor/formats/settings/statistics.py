"""Measured statistics of an SAE's features, next to its weights: `features.json`.

    {"median_norm": 171.2, "0": {"max": 45.02, "label": "the sea", "density": 0.029, "top_tokens": [" sea"]}, "1": …}

`max` is the feature's largest activation, `median_norm` the median |x| at the hook point; all of it may be missing.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec import Struct

from ...errors import SAEInvalidError

NAME = "features.json"
MOST_BYTES = 256 * 2**20


class RecordedStatistics(Struct, frozen=True):
    """An entry of the file; what else it holds is passed over."""

    max: float | None = None
    label: str | None = None
    density: float | None = None
    """Share of tokens at which the feature is on."""
    top_tokens: tuple[str, ...] = ()


class Statistics(Struct, frozen=True):
    """In the units of the SAE's own activations, and of the model's."""

    maxima: dict[int, float] = {}
    median_norm: float | None = None
    recorded: dict[int, RecordedStatistics] = {}


def read_statistics(folder: str) -> Statistics:
    """The statistics of the SAE in `folder`; empty for a single file, or without `features.json`.

    `SAEInvalidError` for one that cannot be read.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return Statistics()
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SAEInvalidError(f"{NAME} is larger than {MOST_BYTES} bytes")
        entries = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
        found = {
            int(key): msgspec.json.decode(raw, type=RecordedStatistics)
            for key, raw in entries.items()
            if key.isdecimal()
        }
        median = msgspec.json.decode(entries.get("median_norm", msgspec.Raw(b"null")), type=float | None)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
        raise SAEInvalidError(f"{NAME} of the SAE cannot be read") from None
    maxima = {feature: each.max for feature, each in found.items() if each.max is not None and math.isfinite(each.max)}
    return Statistics(maxima, median, found)
