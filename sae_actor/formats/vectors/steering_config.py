"""Steering of lm-evaluation-harness: a pickle of {hook: {steering_vector, steering_coefficient, action, bias, …}}.

    add      x + steering_coefficient · steering_vector
    clamp    x + (steering_coefficient − x·v)·v, after bias is taken away and before it is added again

The vector is what is read; coefficient and action become the strength and the method of an edit. A child process
turns the pickle into safetensors, in which the vector of `layers.3` is `layers.3.steering_vector`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..file_names import CONVERTIBLE
from ..files import SaeFiles
from ..headers import TensorFile
from ..hook_names import parse_hook, parse_layer
from ..layout import Layout
from .found import FoundRow, chosen, layout_of

VECTOR = ".steering_vector"
"""Ends the name of each vector; `pickles` gives it."""
_NAME = re.compile(r".+(?:\.safetensors|\.pt|\.pth)", re.DOTALL)
_METHODS = {"add": "add", "clamp": "set_projection"}


def recognise(files: SaeFiles) -> bool:
    names = files.matching(_NAME)
    if len(names) != 1 or (names[0].endswith(CONVERTIBLE) and not files.reads_pickles):
        return False
    return any(tensor.endswith(VECTOR) for tensor in files.tensors(names[0]).tensors)


def read(files: SaeFiles) -> Layout:
    file = files.tensors(files.one(_NAME))
    return layout_of(file.name, chosen(file.name, _rows(file), files.layer))


def _rows(file: TensorFile) -> list[FoundRow]:
    rows = []
    for tensor, stored in file.tensors.items():
        hook = tensor.removesuffix(VECTOR)
        if hook == tensor:
            continue
        said = file.extras.get(hook)
        settings: Mapping[str, Any] = said if isinstance(said, dict) else {}
        why = _refusal(hook, settings, f"{hook}.bias" in file)
        row = FoundRow(hook, parse_hook(hook), parse_layer(hook), stored, _left(settings), why)
        rows.append(row)
    return rows


def _refusal(hook: str, settings: Mapping[str, Any], biased: bool) -> str | None:
    if settings.get("head_index") is not None:
        return f"{hook} steers one head (head_index), which is no hook point here"
    if biased or settings.get("bias") is not None:
        return f"{hook} clamps after a bias is taken away, which no method here does"
    return None


def _left(settings: Mapping[str, Any]) -> dict[str, str]:
    action, coefficient = settings.get("action"), settings.get("steering_coefficient")
    left = {}
    if coefficient is not None:
        left["steering_coefficient"] = f"says {str(coefficient)[:40]}: give it as the strength of an edit"
    if action is not None:
        method = _METHODS.get(str(action))
        left["action"] = f"says {str(action)[:40]}" + (f": give {method} as the method of an edit" if method else "")
    return left
