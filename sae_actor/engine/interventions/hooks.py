"""Interventions on one forward pass: hooks that exist for one step of one or several generations.

At one hook point everything is computed from the same activation x [n, width]: every steering difference, every
reconstruction, the norms that identify a sink. Rows without an active edit pass bit for bit, and so do rows of other
generations. A hook never raises through the model: an error is noted, the activation passes unchanged, and `settle`
raises it after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import Tensor

from ...domain.refs import SINK_WINDOW, HookPoint
from ...ports import Activations, PositionDetails
from .details import Details
from .hook_points import Architecture, Hook
from .hook_site import HookFault, HookSite, MergedEdits, SiteReport, SiteRows, Tally
from .positions import TokenKinds, measured
from .probes import Probe, ProbeHook, joined
from .sae_intervention import SaeIntervention
from .step_hook import StepHook


class PreparedIntervention:
    """An intervention and its probes, ready for one generation."""

    def __init__(
        self,
        parts: Sequence[SaeIntervention],
        architecture: Architecture,
        prompt: int,
        probes: Sequence[Probe] = (),
        marks: TokenKinds | None = None,
        *,
        window: int | None = SINK_WINDOW,
    ) -> None:
        """The SAEs at their hook points; `prompt` is the number of prompt tokens, `window` as of
        `GenerationRequest.sink_window`. Raises as `Architecture.hook`."""
        points = dict.fromkeys(part.write_at for part in parts)
        self.tally = Tally()
        self.prompt = prompt
        self.sites = [
            HookSite(at, architecture.hook(at), [part for part in parts if part.write_at == at]) for at in points
        ]
        self.readers = [(part, architecture.hook(part.read_at)) for part in parts if part.read_at != part.write_at]
        """SAEs that read elsewhere than they write, and where."""
        self.probes = list(probes)
        self.stop: Probe | None = None
        """The one for `stop_when`, which is not reported."""
        self.details: Details | None = None
        """If it is reported what the edits do at each position."""
        self._parts = parts
        self._marks = marks
        self._window = window
        for site in self.sites:
            site.window = window
            site.behind_others = _behind_others(site.point, points)
        for probe in probes:
            probe.behind_others = _behind_others(probe.watch.sae.hook_point, points)

    def report_edits(self, before: Sequence[Probe]) -> None:
        """Report what the edits do at each position, and what these probes read there, before and after."""
        points = [site.point for site in self.sites]
        for site in self.sites:
            site.reports_edits = True
        for probe in before:
            probe.behind_others = _behind_others(probe.watch.sae.hook_point, points)
        after = {probe: probe.again() for probe in before if probe.watch.sae.hook_point in points}
        # In the request's order, not by hook point.
        self.details = Details(self._parts, before, after)

    def add(self, token: int) -> None:
        """A generated token, which the next step runs."""
        if self._marks is not None:
            self._marks.add(token)

    @property
    def first_piece(self) -> int:
        """This many of the prompt's first tokens run in one step, for the norms that identify sinks."""
        if not (self.sites or self.probes):
            return 0
        left_out = [*(site.leaves_out_sinks for site in self.sites), *(each.leaves_out_sinks for each in self.probes)]
        if self._window is None and not any(left_out):
            return 0
        return measured(self.prompt, self._window)

    @property
    def most_rows(self) -> int:
        """At most this many of the prompt's positions in a step: a lens has every one of them unembedded."""
        lenses = [probe.lens for probe in self.probes if probe.lens is not None]
        return lenses[0].rows(len(lenses)) if lenses else self.prompt

    def forget(self, attach_position: int) -> None:
        """Read an SAE no more that is only looked at now and then."""
        self.probes = [probe for probe in self.probes if not probe.passing or probe.attach_position != attach_position]

    def settle(self, first: int) -> None:
        """After a step: count what it wrote; `HookFault` if the intervention did not reach what it should."""
        reports = [site.settle(first, self.tally) for site in self.sites]
        if self.details is not None:
            self.details.add(reports)

    def read_into(self, found: dict[Probe, Activations]) -> None:
        """After a step: join what the SAEs that are watched read in it to what was found before; `HookFault` if one
        could not."""
        for probe in self.probes:
            if probe.failure is not None:
                raise HookFault(probe.at_fault, probe.failure)
        for probe in self.probes:
            if probe.reading is not None:
                before = None if probe.passing else found.get(probe)
                found[probe] = probe.reading if before is None else joined(before, probe.reading, probe.watch)

    def taken_details(self) -> tuple[PositionDetails, ...]:
        """What is reported of the positions that were run since it was asked last."""
        return () if self.details is None else self.details.taken()


def _behind_others(point: HookPoint, written: Iterable[HookPoint]) -> bool:
    """Whether what arrives at `point` may be changed by what is written at another hook point of its block or below."""
    return any(other != point and other.layer <= point.layer for other in written)


class StepRows(NamedTuple):
    """A generation's rows in a step: positions first … stop − 1 are the rows from `row` on."""

    applied: PreparedIntervention
    first: int
    stop: int
    row: int

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.stop - self.first)


@contextmanager
def hooks_installed(places: Sequence[StepRows], rows: int, joins: MergedEdits) -> Iterator[None]:
    """Inside this block the hooks of all these generations are on the model, for a forward pass of `rows` rows."""
    joints: dict[Hook, list[SiteRows]] = {}
    readers: dict[Hook, list[tuple[SaeIntervention, slice]]] = {}
    probes: dict[Hook, ProbeHook] = {}
    lenses: dict[Hook, ProbeHook] = {}
    leaving: dict[Hook, ProbeHook] = {}
    for place in places:
        if (details := place.applied.details) is not None:
            details.begin(place.first, place.stop, place.row)
            for probe in details.before:
                probes.setdefault(probe.hook, ProbeHook(rows)).probes.append(probe)
            for probe in details.after.values():
                leaving.setdefault(probe.hook, ProbeHook(rows)).probes.append(probe)
        for probe in place.applied.probes:
            if probe.begin(place.first, place.stop, place.row):
                (probes if probe.lens is None else lenses).setdefault(probe.hook, ProbeHook(rows)).probes.append(probe)
        for part, hook in place.applied.readers:
            part.read = None
            readers.setdefault(hook, []).append((part, place.rows))
        for site in place.applied.sites:
            site.reading = SiteReport()
            entry = SiteRows(site, place.first, place.stop, place.row, place.applied.prompt)
            joints.setdefault(site.hook, []).append(entry)
    written = [StepHook(hook, entries, rows, joins) for hook, entries in joints.items()]
    try:
        with ExitStack() as handles:
            # Two hook points may be at one side of a module: the one that the model comes to first is installed first.
            for first in (True, False):
                # Probes and readers first: at a hook point that is also written to, they see what arrives.
                for hook, looking in probes.items():
                    if hook.comes_first is first:
                        handles.callback(hook.install(looking.see).remove)
                for hook, parts in readers.items():
                    if hook.comes_first is first:
                        handles.callback(hook.install(_keeping(parts, hook)).remove)
                for joint in written:
                    if joint.hook.comes_first is first:
                        handles.callback(joint.hook.install(joint.edit).remove)
                for hook, looking in leaving.items():
                    if hook.comes_first is first:
                        handles.callback(hook.install(looking.see).remove)
            # Last: a lens sees what the model goes on with.
            for hook, looking in lenses.items():
                handles.callback(hook.install(looking.see).remove)
            yield
        for joint in written:
            joint.settle()
        for looking in (*probes.values(), *leaving.values(), *lenses.values()):
            looking.take()
    finally:
        for parts in readers.values():
            for part, _ in parts:
                part.read = None


def _keeping(parts: Sequence[tuple[SaeIntervention, slice]], hook: Hook) -> Callable[[Tensor], None]:
    """Keeps the rows of what arrives for the SAEs that write elsewhere. A block may go on to add to the same tensor."""

    def seen(x: Tensor) -> None:
        read = hook.seen(x.clone()).reshape(-1, x.shape[-1])
        for part, rows in parts:
            part.read = read[rows]

    return seen
