"""Which positions of a request an edit covers, as ranges [from, to) counted from 0, and which are attention sinks.

With P prompt tokens: the position of the first generated token is P; it is run through the model (and can be
edited) only when a second one is made. Ranges without an end run to `END`.

Sinks at a hook point are the first position, and outliers of the norm. The norm is compared with the median of the
prompt's first positions. The generation's record says how many: `SINK_WINDOW`, or the whole prompt, as in logs from
before there was a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...domain.chats import MessageSpan, positions_of
from ...domain.refs import Edit, Positions
from ...errors import BadRequestError, InternalError

END = 2**62
"""After every possible position."""
SINK_FACTOR = 5.0
"""A position is a sink if |x| is above this many times the median |x|."""

Ranges = tuple[tuple[int, int], ...]
Flags = NDArray[np.bool_]


class PositionGroup(NamedTuple):
    """Positions that some edits of one SAE cover, and which of them are left alone."""

    ranges: Ranges
    without_sinks: bool = False
    without_special: bool = False
    without_template: bool = False


def group_of(edit: Edit, prompt: int, turns: Sequence[MessageSpan] = ()) -> PositionGroup:
    """What `edit` covers in a request with `prompt` prompt tokens. Raises as `ranges_of`."""
    exclude = edit.exclude
    return PositionGroup(
        ranges_of(edit.positions, prompt, turns), "sink" in exclude, "special" in exclude, "template" in exclude
    )


class TokenKinds:
    """What tokens show about single positions: special ones, and those that a template wrote."""

    def __init__(self, ids: Sequence[int], special: frozenset[int], turns: Sequence[MessageSpan]) -> None:
        self._special_ids = special
        self._special = [each in special for each in ids]
        said = {at for turn in turns for part in turn.said for at in range(*part)}
        # A prompt that is not a chat has no template, and the model writes generated tokens.
        self._template = [at not in said for at in range(len(ids))] if turns else []

    def add(self, token: int) -> None:
        """A generated token is run."""
        self._special.append(token in self._special_ids)

    def special(self, start: int, stop: int) -> Flags:
        """[stop − start]"""
        return np.array(self._special[start:stop], dtype=np.bool_)

    def template(self, start: int, stop: int) -> Flags:
        """[stop − start]"""
        marks = self._template[start:stop]
        return np.array(marks + [False] * (stop - start - len(marks)), dtype=np.bool_)


def ranges_of(positions: Positions, prompt: int, turns: Sequence[MessageSpan] = ()) -> Ranges:
    """The positions that are meant in a request with `prompt` prompt tokens (at least 1).

    A role's positions are the tokens of its messages, the template's around them included, without nested messages of
    other roles. The answer opened at the end is not a message. `BadRequestError` for a role if the prompt has no
    messages.
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
        if not turns:
            raise BadRequestError("positions by role require a chat", param="positions")
        return merged(positions_of(positions.role, turns))
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


def mask(ranges: Ranges, start: int, stop: int) -> Flags:
    """[stop − start]: which of the positions start … stop − 1 are in the ranges."""
    covered = np.zeros(stop - start, dtype=np.bool_)
    for first, behind in ranges:
        covered[max(first - start, 0) : max(behind - start, 0)] = True
    return covered


def measured(prompt: int, window: int | None) -> int:
    """Of how many first positions the median is; all of them are in the first piece of the prompt."""
    return prompt if window is None else min(prompt, window)


def norms_of(x: Tensor) -> Tensor:
    """|x| of each row, [n] float32."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return norms


def limit_of(norms: Tensor, prompt: int, window: int | None) -> Tensor:
    """The norm above which a position is a sink, from those of the first chunk of a prompt of that many tokens."""
    count = measured(prompt, window)
    if len(norms) < count:
        raise InternalError("the prompt's median norm needs more of its first positions at once")
    return SINK_FACTOR * norms[:count].median()
