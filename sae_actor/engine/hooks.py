"""Interventions on one forward pass: hooks that are there for one step, of one text or of several beside each other.

Of one hook point, everything is computed from the same activation x [n, width]: every steering difference, every
reconstruction, the norms that tell a sink. Rows that no edit is active on are passed on bit for bit, rows of other
texts too. A hook never raises through the model: what goes wrong is noted, the activation passes unchanged, and
`settle` raises it once the step is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..architectures import Architecture, Hook
from ..domain.refs import SINK_WINDOW, ActiveSae, HookPoint, Turn
from ..errors import InternalError, SAEError, SAEUnsupportedError
from ..ports import Activations
from ..sae.projections import Projections
from ..sae.steering import Steering
from .entries import Entry, Reading
from .joins import Joins
from .joint import Joint
from .positions import Flags, Marks, group_of, mask
from .probes import Probe, ProbeJoint
from .sinks import measured


class Part:
    """One SAE of an intervention at its hook point, for one text."""

    def __init__(
        self,
        sae: ActiveSae,
        steering: Steering,
        prompt: int,
        turns: Sequence[Turn] = (),
        marks: Marks | None = None,
    ) -> None:
        """`steering` holds the edits of `sae`; `prompt` is the number of prompt tokens, `marks` tells their kinds
        where an edit leaves some out. Raises as `group_of`."""
        self.attach_position = sae.attach_position
        self.steering = steering
        self.reconstructs = sae.mode == "reconstruct"
        self.read_at = sae.hook_point
        self.write_at = sae.hook_point_out or sae.hook_point
        self.read: Tensor | None = None
        """This step's activation at `read_at` [n, d_in], where that is another hook point than `write_at`."""
        of_edit = [group_of(edit, prompt, turns) for edit in sae.steering]
        self._groups = list(dict.fromkeys(of_edit))
        self._group_of_edit = np.array([self._groups.index(group) for group in of_edit], dtype=np.intp)
        self.without_sinks: Flags = np.array([group.without_sinks for group in of_edit], dtype=np.bool_)
        """[n_edits]"""
        self._marks = marks
        self.passes = sae.passes
        """What `reconstruct` passes through."""

    @property
    def leaves_out_sinks(self) -> bool:
        if self.reconstructs and "sink" in self.passes:
            return True
        return any(group.without_sinks for group in self._groups)

    @property
    def projections(self) -> Projections | None:
        """What is computed together with other SAEs' projections at the hook point."""
        return None if self.reconstructs else self.steering.projections

    def covered(self, first: int, stop: int) -> Flags | None:
        """[n_edits, n]: which positions the edits cover; None where the SAE has nothing to do."""
        if not self._groups:
            return np.zeros((0, stop - first), dtype=np.bool_) if self.reconstructs else None
        masks = np.stack([mask(group.ranges, first, stop) for group in self._groups])
        return masks[self._group_of_edit] if self.reconstructs or masks.any() else None

    def left_out(self, first: int, stop: int) -> Flags | None:
        """[n_edits, n]: which positions are left alone for their tokens' sake; None for none."""
        if not any(group.without_special or group.without_template for group in self._groups):
            return None
        special, template = self._kinds(first, stop)
        groups = [group.without_special & special | group.without_template & template for group in self._groups]
        return np.stack(groups)[self._group_of_edit]

    def passed(self, first: int, stop: int) -> Flags:
        """[n]: which positions `reconstruct` passes through for their tokens' sake."""
        passed = np.zeros(stop - first, dtype=np.bool_)
        if self.passes <= {"sink"}:
            return passed
        for kind, marked in zip(("special", "template"), self._kinds(first, stop), strict=True):
            if kind in self.passes:
                passed |= marked
        return passed

    def _kinds(self, first: int, stop: int) -> tuple[Flags, Flags]:
        """[n] each: special tokens, tokens of the template."""
        if self._marks is None:
            raise InternalError("the kinds of the tokens are not known")
        return self._marks.special(first, stop), self._marks.template(first, stop)


class HookFault(Exception):  # noqa: N818 — a fault of an SAE, named as in the event log
    """The intervention could not be applied. `attach_position` is the SAE at fault; None where it is none's."""

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


class Site:
    """One hook point that one text writes to."""

    def __init__(self, point: HookPoint, hook: Hook, parts: list[Part]) -> None:
        self.point = point
        self.hook = hook
        self.parts = parts
        self.behind_others = False
        """The same text may write at a hook point before this one: what arrives is not the model's alone."""
        self.limit: Tensor | None = None
        """Norm above which a position is a sink; measured with the prompt."""
        self.window: int | None = SINK_WINDOW
        """As of `TextRequest.sink_window`."""
        self.reading = Reading()
        """Of the newest step."""

    @property
    def leaves_out_sinks(self) -> bool:
        return any(part.leaves_out_sinks for part in self.parts)

    @property
    def knows_sinks(self) -> bool:
        """Where a median of all the prompt tells them, only if they are left out: it costs that prompt's one piece."""
        return self.window is not None or self.leaves_out_sinks

    @cached_property
    def jointly(self) -> Projections | None:
        """The projections of all SAEs, where more than one has some: they act together. Those of an SAE in
        `reconstruct` act on its output."""
        several = [part.projections for part in self.parts if part.projections is not None]
        return Projections.joined(several) if len(several) > 1 else None

    def settle(self, first: int, tally: Tally) -> None:
        """Count what was written; raise `HookFault` where it could not be. `first` is the step's first position."""
        reading, self.reading = self.reading, Reading()
        if reading.failure is not None:
            raise HookFault(reading.at_fault, reading.failure)
        if reading.calls != 1:
            detail = f"the model ran {self.point} {reading.calls} times in one step, not once"
            raise HookFault(None, InternalError(detail))
        if not reading.x_finite:
            raise HookFault(None, InternalError(f"the model's activation at {self.point} is not finite"))
        if not reading.new_finite:
            if reading.at_fault is None:
                beyond = f"the edits at {self.point} lead beyond the numbers that the model or the SAE can hold"
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


class Applied:
    """An intervention, and what is read on the way, ready for one text."""

    def __init__(
        self,
        sites: Sequence[Site],
        readers: Sequence[tuple[Part, Hook]],
        prompt: int,
        probes: Sequence[Probe] = (),
        marks: Marks | None = None,
        *,
        window: int | None = SINK_WINDOW,
    ) -> None:
        self.tally = Tally()
        self.prompt = prompt
        self.sites = sites
        self.readers = readers
        """SAEs that read elsewhere than they write, and where."""
        self.probes = list(probes)
        self.stop: Probe | None = None
        """The one of them that ends the text, and is not told."""
        self._marks = marks
        self._window = window
        for site in sites:
            site.window = window

    def add(self, token: int) -> None:
        """A generated token, which the next step runs."""
        if self._marks is not None:
            self._marks.add(token)

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        architecture: Architecture,
        prompt: int,
        probes: Sequence[Probe] = (),
        marks: Marks | None = None,
        *,
        window: int | None = SINK_WINDOW,
    ) -> Applied:
        """The SAEs at their hook points; `prompt` is the number of prompt tokens, `window` as of
        `TextRequest.sink_window`. Raises as `Architecture.hook`."""
        points = dict.fromkeys(part.write_at for part in parts)
        sites = [Site(at, architecture.hook(at), [part for part in parts if part.write_at == at]) for at in points]
        for site in sites:
            site.behind_others = _behind_others(site.point, points)
        for probe in probes:
            probe.behind_others = _behind_others(probe.watch.sae.hook_point, points)
        readers = [(part, architecture.hook(part.read_at)) for part in parts if part.read_at != part.write_at]
        return cls(sites, readers, prompt, probes, marks, window=window)

    @property
    def first_piece(self) -> int:
        """So many of the prompt's first tokens are run at once, for the norms that tell sinks."""
        left_out = [*(site.leaves_out_sinks for site in self.sites), *(each.leaves_out_sinks for each in self.probes)]
        if self._window is None and not any(left_out):
            return 0
        return measured(self.prompt, self._window)

    def forget(self, attach_position: int) -> None:
        """Read an SAE no more that is only looked at now and then."""
        self.probes = [probe for probe in self.probes if not probe.passing or probe.attach_position != attach_position]

    def settle(self, first: int) -> None:
        """After a step: count what it wrote; `HookFault` if the intervention did not reach what it should."""
        for site in self.sites:
            site.settle(first, self.tally)

    def told(self) -> list[tuple[Probe, Activations]]:
        """After a step: what the SAEs that are watched read in it; `HookFault` if one could not."""
        for probe in self.probes:
            if probe.failure is not None:
                raise HookFault(probe.at_fault, probe.failure)
        return [(probe, probe.told) for probe in self.probes if probe.told is not None]


def _behind_others(point: HookPoint, written: Iterable[HookPoint]) -> bool:
    """Whether what arrives at `point` may be changed by what is written at another hook point of its block or below."""
    return any(other != point and other.layer <= point.layer for other in written)


class Place(NamedTuple):
    """A text's rows in a step: positions first … stop − 1 are the rows from `row` on."""

    applied: Applied
    first: int
    stop: int
    row: int

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.stop - self.first)


@contextmanager
def beside(places: Sequence[Place], rows: int, joins: Joins) -> Iterator[None]:
    """The hooks of all these texts are on the model inside of this block, for a forward pass of `rows` rows."""
    joints: dict[Hook, list[Entry]] = {}
    readers: dict[Hook, list[tuple[Part, slice]]] = {}
    probes: dict[Hook, ProbeJoint] = {}
    for place in places:
        for probe in place.applied.probes:
            if probe.begin(place.first, place.stop, place.row):
                probes.setdefault(probe.hook, ProbeJoint(rows)).probes.append(probe)
        for part, hook in place.applied.readers:
            part.read = None
            readers.setdefault(hook, []).append((part, place.rows))
        for site in place.applied.sites:
            site.reading = Reading()
            entry = Entry(site, place.first, place.stop, place.row, place.applied.prompt)
            joints.setdefault(site.hook, []).append(entry)
    written = [Joint(hook, entries, rows, joins) for hook, entries in joints.items()]
    try:
        with ExitStack() as handles:
            # Two hook points may be at one side of a module: the one that the model comes to first is installed first.
            for first in (True, False):
                # Probes and readers first: at a hook point that is also written to, they see what arrives.
                for hook, looking in probes.items():
                    if hook.comes_first is first:
                        handles.callback(hook.install(looking.see(hook)).remove)
                for hook, parts in readers.items():
                    if hook.comes_first is first:
                        handles.callback(hook.install(_Read(parts, hook)).remove)
                for joint in written:
                    if joint.hook.comes_first is first:
                        handles.callback(joint.hook.install(joint.edit).remove)
            yield
        for joint in written:
            joint.settle()
        for looking in probes.values():
            looking.take()
    finally:
        for parts in readers.values():
            for part, _ in parts:
                part.read = None


class _Read:
    """Keeps the rows of what arrives for the SAEs that write elsewhere."""

    def __init__(self, parts: Sequence[tuple[Part, slice]], hook: Hook) -> None:
        self._parts = parts
        self._hook = hook

    def __call__(self, x: Tensor) -> None:
        seen = self._hook.seen(x.clone() if self._hook.in_place else x).reshape(-1, x.shape[-1])
        for part, rows in self._parts:
            part.read = seen[rows]
