"""A hook point that a generation writes to: its rows in one step, the SAE that writes there, the result.

The edits of several generations there become one set.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...domain.refs import SINK_WINDOW, HookPoint
from ...errors import InternalError, SAEError, SAEUnsupportedError
from ...sae.projections import Projections
from ...sae.steering import Steering
from .hook_points import Hook
from .positions import Flags
from .sae_intervention import SaeIntervention

MAX_JOINED = 8
JOINED_BYTES = 64 * 2**20
"""What the sets that are kept may take together, the newest apart."""


@dataclass
class SiteReport:
    """What a hook did to the rows of one generation in one step."""

    calls: int = 0
    failure: SAEError | None = None
    at_fault: int | None = None
    """attach_position of the SAE that failed; None: none did."""
    x_finite: bool = True
    new_finite: bool = True
    edited: Sequence[bool] = ()
    """For each row; empty if there was nothing to do."""
    passed: Sequence[bool] = ()
    """Rows that were left alone as excluded."""
    sinks: Sequence[bool] = ()
    ratios: Sequence[float] = ()
    """|difference| / |x|"""
    held: dict[SaeIntervention, Sequence[Sequence[bool]]] = field(default_factory=dict)
    """With `HookSite.reports_edits`, of SAEs that had something to do: at which rows each edit held, [n_edits][n]."""


class SiteRows(NamedTuple):
    """A generation at a hook point: positions first … stop − 1 are the rows from `row` on."""

    site: HookSite
    first: int
    stop: int
    row: int
    prompt: int

    @property
    def size(self) -> int:
        return self.stop - self.first


class SaeRows(NamedTuple):
    """One SAE of one generation in one step."""

    part: SaeIntervention
    entry: SiteRows
    at: int
    """First of its rows among those that are computed."""
    covered: Flags
    """[n_edits, n]"""


class HookFault(Exception):  # noqa: N818 — a fault of an SAE, named as in the event log
    """The intervention could not be applied. `attach_position` is the SAE at fault; None if no SAE is."""

    def __init__(self, attach_position: int | None, error: SAEError) -> None:
        super().__init__(error.detail)
        self.attach_position = attach_position
        self.error = error


@dataclass
class Tally:
    """What was written to so far, over all hook points."""

    edited: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    """Positions that an edit covers, and that were left alone as excluded at a hook point."""
    edited_sinks: set[int] = field(default_factory=set)
    """Of those that were written to, the sinks of the hook point."""
    ratios: float = 0.0
    writes: int = 0

    @property
    def mean_relative_norm(self) -> float:
        return self.ratios / self.writes if self.writes else 0.0


class HookSite:
    """One hook point that one generation writes to."""

    def __init__(self, point: HookPoint, hook: Hook, parts: list[SaeIntervention]) -> None:
        self.point = point
        self.hook = hook
        self.parts = parts
        self.behind_others = False
        """The same generation may write at an earlier hook point: the activation here is not the model's alone."""
        self.limit: Tensor | None = None
        """Norm above which a position is a sink; measured with the prompt."""
        self.window: int | None = SINK_WINDOW
        """As of `GenerationRequest.sink_window`."""
        self.reports_edits = False
        """It is asked at which positions each edit held."""
        self.reading = SiteReport()
        """Of the newest step."""

    @property
    def leaves_out_sinks(self) -> bool:
        return any(part.leaves_out_sinks for part in self.parts)

    @property
    def knows_sinks(self) -> bool:
        """With a median over the whole prompt, only if they are left out: it needs the prefill in one piece."""
        return self.window is not None or self.leaves_out_sinks

    @cached_property
    def jointly(self) -> Projections | None:
        """The projections of all SAEs, if more than one has some: they act together. Those of an SAE in `reconstruct`
        act on its output."""
        several = [part.projections for part in self.parts if part.projections is not None]
        return Projections.joined(several) if len(several) > 1 else None

    def settle(self, first: int, tally: Tally) -> SiteReport:
        """Count what was written; raise `HookFault` if that failed. `first` is the step's first position."""
        reading, self.reading = self.reading, SiteReport()
        if reading.failure is not None:
            raise HookFault(reading.at_fault, reading.failure)
        if reading.calls != 1:
            detail = f"the model ran {self.point} {reading.calls} times in one step, not once"
            raise HookFault(None, InternalError(detail))
        if not reading.x_finite:
            raise HookFault(None, InternalError(f"the model's activation at {self.point} is not finite"))
        if not reading.new_finite:
            if reading.at_fault is None:
                beyond = f"the edits at {self.point} exceed the numbers that the model or the SAE can hold"
                raise HookFault(None, SAEUnsupportedError(beyond, param="strength"))
            raise HookFault(reading.at_fault, InternalError(f"the SAE's result at {self.point} is not finite"))
        for row, edited in enumerate(reading.edited):
            if edited:
                tally.edited.add(first + row)
                tally.ratios += reading.ratios[row]
                tally.writes += 1
                if reading.sinks[row]:
                    tally.edited_sinks.add(first + row)
            elif reading.passed[row]:
                tally.excluded.add(first + row)
        return reading


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
