"""Edits of generations in one step, as one set for the SAE that they share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import InternalError
from ...sae.steering import Steering
from .positions import Flags

if TYPE_CHECKING:
    from .hook_site import SaeRows

MAX_JOINED = 8
JOINED_BYTES = 64 * 2**20
"""What the sets that are kept may take together, the newest apart."""


class Joined(NamedTuple):
    """The edits of all generations in a group, over the rows [m] of all."""

    steering: Steering
    covered: Flags
    """[edits, m]"""
    without_sinks: Flags
    """[edits]"""
    left_out: Flags | None
    """[edits, m]: rows excluded because of their tokens; None for none."""
    starts: Sequence[int]
    """For each generation: where its edits begin among all."""


class MergedEdits:
    """The edits of generations in one step as one set, kept from step to step while the same ones run."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Steering, ...], Steering] = OrderedDict()

    def of(self, group: Sequence[SaeRows]) -> Joined:
        """The edits of a group of generations at one SAE, over its rows in order. Generations with the same edits share
        them. `InternalError` if edits cannot be joined."""
        if len(group) == 1:
            part, entry, _, covered = group[0]
            return Joined(part.steering, covered, part.without_sinks, part.left_out(entry.first, entry.stop), (0,))
        places: dict[tuple[Steering, bytes], int] = {}
        starts: list[int] = []
        edits = 0
        for each in group:
            key = (each.part.steering, each.part.without_sinks.tobytes())
            if key not in places:
                places[key] = edits
                edits += len(each.part.without_sinks)
            starts.append(places[key])
        rows = sum(each.entry.size for each in group)
        covered = np.zeros((edits, rows), dtype=np.bool_)
        without = np.zeros(edits, dtype=np.bool_)
        left_out: Flags | None = None
        at = 0
        for each, start in zip(group, starts, strict=True):
            mine = slice(start, start + len(each.part.without_sinks)), slice(at, at + each.entry.size)
            covered[mine] = each.covered
            without[mine[0]] = each.part.without_sinks
            own = each.part.left_out(each.entry.first, each.entry.stop)
            if own is not None:
                left_out = np.zeros_like(covered) if left_out is None else left_out
                left_out[mine] = own
            at += each.entry.size
        steering = self._steering(tuple(steering for steering, _ in places))
        return Joined(steering, covered, without, left_out, starts)

    def _steering(self, steerings: tuple[Steering, ...]) -> Steering:
        """The edits of all, in order."""
        if len(steerings) == 1:
            return steerings[0]
        joined = self._kept.pop(steerings, None)
        if joined is None:
            if not all(each.finite for each in steerings):
                raise InternalError("the SAE's result for an edit is not finite")
            joined = Steering.joined(steerings)
        self._kept[steerings] = joined
        taken = sum(each.nbytes for each in self._kept.values())
        while len(self._kept) > 1 and (len(self._kept) > MAX_JOINED or taken > JOINED_BYTES):
            taken -= self._kept.popitem(last=False)[1].nbytes
        return joined

    def clear(self) -> None:
        """Hold no SAE any more."""
        self._kept.clear()
