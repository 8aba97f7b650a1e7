"""What the settings of a model may ask for, before any library reads them.

transformers makes lists as long as some of the numbers say, and a module for each layer: a file of a few bytes could
take all memory, and the thread that loads models for good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ModelLoadError

MOST_LAYERS = 1024
MOST_LABELS = 65_536
_LAYERS = re.compile(r"(.*_)?layers?|attention_types")
"""Also what repeats the kinds of GPT-Neo's layers."""


def refuse_endless(settings: Mapping[str, Any]) -> None:
    """`ModelLoadError` for settings, at any depth, with more layers or labels than any model has."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, each) for each in value]
        elif isinstance(value, int | float):
            most = MOST_LABELS if name == "num_labels" else MOST_LAYERS if _LAYERS.fullmatch(name) else None
            if most is not None and value > most:
                raise ModelLoadError(f"the model's settings ask for {name} {value:.6g}; at most {most}", setting=name)
