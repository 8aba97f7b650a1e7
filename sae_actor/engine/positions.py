"""Which positions of a request an edit covers, as ranges [from, to) counted from 0.

With P prompt tokens: the position of the first generated token is P; it is run through the model (and can be
edited) only when a second one is made. Ranges without an end run to `END`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..domain.refs import Positions
from ..errors import BadRequestError

END = 2**62
"""Behind every position there can be."""

Ranges = tuple[tuple[int, int], ...]


def ranges_of(positions: Positions, prompt: int) -> Ranges:
    """The positions that are meant in a request with `prompt` prompt tokens (at least 1).

    `BadRequestError` for positions by role: the engine is given token ids, without the turns they came from.
    """
    match positions:
        case "all":
            return ((0, END),)
        case "prompt":
            return ((0, prompt),)
        case "generated":
            return ((prompt, END),)
        case "response":
            return ((prompt - 1, END),)
        case "last_prompt":
            return ((prompt - 1, prompt),)
    if positions.role is not None:
        raise BadRequestError("positions by role are not supported yet", param="positions")
    if positions.tokens is not None:
        return merged(positions.tokens)
    return ((positions.from_ or 0, END if positions.to is None else positions.to),)


def merged(positions: Iterable[int]) -> Ranges:
    """Sorted, joined ranges of single positions."""
    found: list[tuple[int, int]] = []
    for at in sorted(set(positions)):
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return tuple(found)


def mask(ranges: Ranges, start: int, stop: int) -> Tensor:
    """[stop − start] bool: which of the positions start … stop − 1 are in the ranges."""
    covered = torch.zeros(stop - start, dtype=torch.bool)
    for first, behind in ranges:
        covered[max(first - start, 0) : max(behind - start, 0)] = True
    return covered
