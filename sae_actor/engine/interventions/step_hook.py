"""One hook point in one step: the edits of all generations that write there, computed together.

Only its own generation's edits touch a row: every edit has a mask over the rows. If the group fails, each generation is
tried on its own, so that only the one at fault ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...errors import InternalError, OutOfMemoryError, SAEError
from ..failures import explained
from .hook_points import Hook
from .hook_site import MergedEdits, SaeRows, SiteRows
from .positions import limit_of, norms_of

if TYPE_CHECKING:
    from .sae_intervention import SaeIntervention


@dataclass
class Report:
    """What is read from the device once the step is over."""

    entries: list[tuple[SiteRows, int]]
    """With the first of their rows here."""
    values: Tensor
    """[6, n] float32: edited, passed by as excluded, a sink, |difference| / |x|; x and the result are finite."""
    x: Tensor
    """[n, width]: the input, kept to find the SAE at fault."""
    held: list[tuple[SaeRows, Tensor]]
    """Of generations that are asked for it: at which of their rows each edit held, bool [n_edits, rows]."""


@dataclass
class _Change:
    """What the SAEs of one group do to n rows."""

    values: Tensor
    """[n, width]: the difference, or in reconstruct the row's replacement; 0 where it does nothing."""
    touched: Tensor
    passed: Tensor
    """bool [n]"""
    reconstructs: bool
    projecting: dict[SaeIntervention, Tensor]
    """bool [p, rows of its generation]: where projections hold that are computed later, with other SAEs'."""
    held: list[tuple[SaeRows, Tensor]]
    """As in `Report`."""


@dataclass
class StepHook:
    """What the hook calls."""

    hook: Hook
    entries: Sequence[SiteRows]
    rows: int
    """Of the whole step."""
    joins: MergedEdits
    _reports: list[Report] = field(default_factory=list)
    _computing: SaeIntervention | None = None

    def edit(self, x: Tensor) -> Tensor | None:
        """The activation [1, rows, width] or [rows, width] with the edits applied; None if unchanged."""
        for entry in self.entries:
            entry.site.reading.calls += 1
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape != (self.rows, self.hook.width):
            at = self.entries[0].site.point
            wrong = f"the activation at {at} is {tuple(x.shape)}, not {self.rows} × {self.hook.width}"
            self._fail(self.entries, InternalError(wrong), None)  # the model's doing: no SAE has computed anything
            return None
        new = self._attempt(rows, self.entries)
        return None if new is None else new.reshape(x.shape)

    def _attempt(self, rows: Tensor, entries: Sequence[SiteRows]) -> Tensor | None:
        self._computing = None
        try:
            return self._edited(rows, entries)
        except Exception as error:  # anything here must not end the model's forward pass
            failure = explained(error, f"computing the SAE at {entries[0].site.point}")
        if len(entries) == 1:
            self._fail(entries, failure, self._computing)
            return None
        new = None
        for entry in entries:
            own = self._attempt(rows if new is None else new, (entry,))
            new = own if own is not None else new
        return new

    def _fail(self, entries: Sequence[SiteRows], failure: SAEError, computing: SaeIntervention | None) -> None:
        for entry in entries:
            reading = entry.site.reading
            reading.failure = failure
            # Lack of memory is not the SAE's fault; it stays attached.
            innocent = isinstance(failure, OutOfMemoryError)
            reading.at_fault = None if innocent or computing is None else computing.attach_position

    def _edited(self, rows: Tensor, entries: Sequence[SiteRows]) -> Tensor | None:
        writing: dict[tuple[int, bool], list[SaeRows]] = {}
        chosen: list[tuple[SiteRows, int]] = []
        n = 0
        for entry in entries:
            parts = [(part, part.covered(entry.first, entry.stop)) for part in entry.site.parts]
            measures = entry.first == 0 and entry.site.knows_sinks
            if not measures and all(covered is None for _, covered in parts):
                continue
            chosen.append((entry, n))
            for part, covered in parts:
                if covered is not None:
                    group = writing.setdefault((part.attach_position, part.reconstructs), [])
                    group.append(SaeRows(part, entry, n, covered))
            n += entry.size
        if not chosen:
            return None
        in_order = n == len(rows) and all(entry.row == at for entry, at in chosen)
        index = None if in_order else _numbers(((entry.row, entry.size) for entry, _ in chosen), rows.device)
        hooked = rows if index is None else rows[index]  # [n, width]
        x = self.hook.seen(hooked)
        arrived = x.clone() if self.hook.in_place and index is None else x
        norms = norms_of(x)  # [n]
        for entry, at in chosen:
            if entry.first == 0 and entry.site.knows_sinks:
                entry.site.limit = limit_of(norms[at : at + entry.size], entry.prompt, entry.site.window)
        if not writing:
            return None
        sinks = _sinks(chosen, norms)
        groups = list(writing.values())
        changes = [self._change(group, x, sinks) for group in groups]
        self._computing = None
        new = x
        for change in changes:
            if change.reconstructs:
                new = torch.where(change.touched[:, None], change.values.to(x.dtype), new)
        steering = [change for change in changes if not change.reconstructs]
        if steering:
            differences = [change.values for change in steering]
            differences += _jointly(chosen, x, steering)
            wide = x.dtype
            for each in differences:
                wide = torch.promote_types(wide, each.dtype)
            moved = new.to(wide)
            for each in differences:
                moved = moved + each.to(wide)
            touched = torch.stack([change.touched for change in steering]).any(dim=0)
            new = torch.where(touched[:, None], moved.to(x.dtype), new)
        put = new
        if self.hook.gain is not None:
            touched = torch.stack([change.touched for change in changes]).any(dim=0)
            put = self.hook.gain.on(hooked, x, new, touched)
        values = _report(x, new, put, norms=norms, changes=changes, sinks=sinks)
        self._reports.append(Report(chosen, values, arrived, [each for change in changes for each in change.held]))
        return put if index is None else rows.index_copy(0, index, put)

    def _change(self, group: list[SaeRows], x: Tensor, sinks: Tensor) -> _Change:
        """The SAE's result for the group's rows of x [n, width], with the sinks [n] marked."""
        self._computing = first = group[0].part
        here = [(each.at, each.entry.size) for each in group]
        mine = None if sum(size for _, size in here) == len(x) else _numbers(here, x.device)
        own, own_sinks = (x, sinks) if mine is None else (x[mine], sinks[mine])
        steering, covered, without, left_out, starts = self.joins.of(group)
        device = x.device
        held_back = torch.from_numpy(without).to(device)[:, None] & own_sinks  # [edits, m]
        if left_out is not None:
            held_back = held_back | torch.from_numpy(left_out).to(device)
        cover = torch.from_numpy(covered).to(device)
        active = cover & ~held_back
        read = None
        if first.read_at != first.write_at:
            read = _read(group)
        projecting: dict[SaeIntervention, Tensor] = {}
        if first.reconstructs:
            values, held = steering.reconstruct(own, active, read)
            passed = _passed(group, own_sinks)
            touched = ~passed
        else:
            # In the SAE's type, so that the sum is rounded to the model's once.
            alone = _alone(group, device)
            values, held = steering.difference(own.to(steering.sae.dtype), active, read, alone)
            if alone is not None:
                projecting = _projecting(group, starts, held)
            touched, passed = held.any(dim=0), (cover & held_back).any(dim=0)
        if values.shape != own.shape:
            raise InternalError(f"the SAE gave {tuple(values.shape)} at {first.write_at}, not {tuple(own.shape)}")
        values = torch.where(touched[:, None], values, 0)
        asked = _held_of(group, starts, held, touched)
        if mine is not None:
            values = values.new_zeros(len(x), values.shape[1]).index_copy_(0, mine, values)
            nothing = torch.zeros_like(sinks)
            touched, passed = nothing.index_copy(0, mine, touched), nothing.index_copy(0, mine, passed)
        return _Change(values, touched, passed, first.reconstructs, projecting, asked)

    def settle(self) -> None:
        """After the step: report to each generation's site what was done to its rows."""
        for report in self._reports:
            for each, held in report.held:
                each.entry.site.reading.held[each.part] = held.tolist()
            values = report.values.tolist()
            edited, passed, sinks, ratios, x_finite, new_finite = values
            for entry, at in report.entries:
                rows = slice(at, at + entry.size)
                reading = entry.site.reading
                reading.edited, reading.passed, reading.ratios = edited[rows], passed[rows], ratios[rows]
                reading.sinks = sinks[rows]
                reading.x_finite, reading.new_finite = all(x_finite[rows]), all(new_finite[rows])
                if reading.x_finite and not reading.new_finite:
                    written = [row for row, touched in enumerate(reading.edited) if touched]
                    reading.at_fault = _at_fault(entry, report.x[rows], written)
        self._reports = []


def _at_fault(entry: SiteRows, x: Tensor, written: list[int]) -> int | None:
    """attach_position of the first SAE that is not finite at the `written` rows x [n, width], even without its edits.
    None if the edits caused it: what a generation's lower edits made of x is not an SAE's fault."""
    for part in entry.site.parts:
        if part.covered(entry.first, entry.stop) is None:
            continue
        read = None if part.read is None else part.read[written]
        if entry.site.behind_others:
            sound = part.steering.finite
        elif part.reconstructs:
            sound = part.steering.sound_rebuilt(x[written], read)
        else:
            sound = part.steering.sound(x[written], read)
        if not sound:
            return part.attach_position
    return None


def _passed(group: Sequence[SaeRows], sinks: Tensor) -> Tensor:
    """bool [m]: rows that `reconstruct` leaves unchanged; sinks [m] are those found by |x|."""
    marked = np.concatenate([each.part.passed(each.entry.first, each.entry.stop) for each in group])
    without = np.repeat(["sink" in each.part.passes for each in group], [each.entry.size for each in group])
    return torch.from_numpy(marked).to(sinks.device) | (torch.from_numpy(without).to(sinks.device) & sinks)


def _alone(group: Sequence[SaeRows], device: torch.device) -> Tensor | None:
    """bool [m]: rows of generations that project with this SAE alone; None for all."""
    if all(each.entry.site.jointly is None for each in group):
        return None
    rows = [each.entry.site.jointly is None for each in group for _ in range(each.entry.size)]
    return torch.tensor(rows, dtype=torch.bool, device=device)


def _projecting(group: Sequence[SaeRows], starts: Sequence[int], held: Tensor) -> dict[SaeIntervention, Tensor]:
    """`_Change.projecting`, of held [edits, m]; the edits of each generation begin at `starts`."""
    found, at = {}, 0
    for (part, entry, _, _), start in zip(group, starts, strict=True):
        if entry.site.jointly is not None and part.projections is not None:
            found[part] = held[part.steering.projected + start, at : at + entry.size]
        at += entry.size
    return found


def _held_of(
    group: Sequence[SaeRows], starts: Sequence[int], held: Tensor, touched: Tensor
) -> list[tuple[SaeRows, Tensor]]:
    """`Report.held`, of held [edits, m], rows that were `touched` [m]; the edits of each generation begin at
    `starts`."""
    found, at = [], 0
    for each, start in zip(group, starts, strict=True):
        rows = slice(at, at + each.entry.size)
        at = rows.stop
        if each.entry.site.reports_edits:
            mine = slice(start, start + len(each.part.without_sinks))
            found.append((each, held[mine, rows] & touched[rows]))
    return found


def _jointly(chosen: Sequence[tuple[SiteRows, int]], x: Tensor, changes: Sequence[_Change]) -> list[Tensor]:
    """What the projections of several SAEs add to x [n, width], for the generations that have some; None: there are
    none."""
    held = {part: where for change in changes for part, where in change.projecting.items()}
    if not held:
        return []
    differences = []
    for entry, at in chosen:
        jointly = entry.site.jointly
        if jointly is None:
            continue
        wanted = [
            held.get(part, x.new_zeros(len(part.projections), entry.size, dtype=torch.bool))
            for part in entry.site.parts
            if part.projections is not None
        ]
        rows = slice(at, at + entry.size)
        difference = jointly.difference(x[rows], torch.cat(wanted))
        whole = difference.new_zeros(x.shape)
        whole[rows] = difference
        differences.append(whole)
    return differences


def _report(x: Tensor, new: Tensor, put: Tensor, *, norms: Tensor, changes: Sequence[_Change], sinks: Tensor) -> Tensor:
    """`Report.values`; `put` is what takes the place of what is hooked."""
    edited = torch.stack([change.touched for change in changes]).any(dim=0)
    passed = torch.stack([change.passed for change in changes]).any(dim=0)
    moved = torch.linalg.vector_norm(new.float() - x.float(), dim=-1)
    ratio = moved / norms.clamp_min(torch.finfo(torch.float32).tiny)
    rows = (edited, passed & ~edited, sinks, ratio, torch.isfinite(norms), torch.isfinite(put).all(dim=-1))
    return torch.stack([row.float() for row in rows])


def _numbers(ranges: Iterable[tuple[int, int]], device: torch.device) -> Tensor:
    """[n]: all rows of these ranges, each the first and how many."""
    rows = [row for first, size in ranges for row in range(first, first + size)]
    return torch.tensor(rows, dtype=torch.long, device=device)


def _sinks(chosen: Sequence[tuple[SiteRows, int]], norms: Tensor) -> Tensor:
    """[n] bool: the first position, and those whose norm is above their generation's limit."""
    if not any(entry.site.knows_sinks for entry, _ in chosen):
        return torch.zeros_like(norms, dtype=torch.bool)
    limits = torch.full_like(norms, torch.inf)
    first = []
    for entry, at in chosen:
        if not entry.site.knows_sinks:
            continue
        if entry.site.limit is None:
            raise InternalError("the prompt's median norm was not measured")
        limits[at : at + entry.size] = entry.site.limit
        if entry.first == 0:
            first.append(at)
    sinks = norms > limits
    sinks[first] = True
    return sinks


def _read(group: Sequence[SaeRows]) -> Tensor:
    """[m, d_in]: the activation where the SAE reads."""
    seen = []
    for each in group:
        read = each.part.read
        if read is None or len(read) != each.entry.size:
            part = each.part
            raise InternalError(f"the activation at {part.read_at} was not read before that at {part.write_at}")
        seen.append(read)
    return seen[0] if len(seen) == 1 else torch.cat(seen)
