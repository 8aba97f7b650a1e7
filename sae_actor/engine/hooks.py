"""One request's intervention on the forward pass: hooks that are there for one step of that request alone.

Of one hook point, everything is computed from the same activation x [n, width]: every steering difference, every
reconstruction, the norms that tell a sink. Rows that no edit is active on are passed on bit for bit. A hook never
raises through the model: what goes wrong is noted, the activation passes unchanged, and `settle` raises it once
the step is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..architectures import Architecture, Hook
from ..domain.refs import ActiveSae, HookPoint, Turn
from ..errors import InternalError, OutOfMemoryError, SAEError
from ..ports import Activations
from ..sae.steering import Steering
from .failures import explained
from .positions import Marks, group_of, mask
from .probes import Probe

SINK_FACTOR = 5.0
"""A position is a sink where |x| is above so many times the median |x| of the prompt at that hook point."""


class Part:
    """One SAE of an intervention at its hook point, for one request."""

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
        device = steering.sae.device
        self._group_of_edit = torch.tensor([self._groups.index(g) for g in of_edit], dtype=torch.long, device=device)
        without = [group.without_sinks for group in self._groups]
        self._without = torch.tensor(without, dtype=torch.bool, device=device)[:, None]  # [n_groups, 1]
        self._marks = marks

    @property
    def knows_sinks(self) -> bool:
        return self.reconstructs or any(group.without_sinks for group in self._groups)

    def covered(self, first: int, stop: int) -> Tensor | None:
        """[n_groups, n] bool on the CPU: which positions the edits cover; None where the SAE has nothing to do."""
        if not self._groups:
            return torch.zeros(0, stop - first, dtype=torch.bool) if self.reconstructs else None
        masks = torch.stack([mask(group.ranges, first, stop) for group in self._groups])
        return masks if self.reconstructs or bool(masks.any()) else None

    def left_out(self, first: int, stop: int) -> Tensor | None:
        """[n_groups, n] bool on the CPU: which positions are left alone for their tokens' sake; None for none."""
        if not any(group.without_special or group.without_template for group in self._groups):
            return None
        if self._marks is None:
            raise InternalError("the kinds of the tokens are not known")
        special, template = self._marks.special(first, stop), self._marks.template(first, stop)
        return torch.stack([g.without_special & special | g.without_template & template for g in self._groups])

    def run(self, rows: Tensor, covered: Tensor, sinks: Tensor, left_out: Tensor | None = None) -> Change:
        """What the SAE makes of `rows` [n, width], of which the sinks [n] are marked."""
        if self.read_at != self.write_at and (self.read is None or len(self.read) != len(rows)):
            raise InternalError(f"the activation at {self.read_at} was not read before that at {self.write_at}")
        covered = covered.to(rows.device)
        without = self._without & sinks  # [n_groups, n]
        if left_out is not None:
            without = without | left_out.to(rows.device)
        active = (covered & ~without)[self._group_of_edit]  # [n_edits, n]
        if self.reconstructs:
            values, _ = self.steering.reconstruct(rows, active, self.read)
            touched, passed = ~sinks, sinks
        else:
            # In the SAE's type, so that the sum is rounded to the model's once.
            values, held = self.steering.difference(rows.to(self.steering.sae.dtype), active, self.read)
            touched, passed = held.any(dim=0), (covered & without).any(dim=0)
        if values.shape != rows.shape:
            raise InternalError(f"the SAE gave {tuple(values.shape)} at {self.write_at}, not {tuple(rows.shape)}")
        return Change(torch.where(touched[:, None], values, 0), touched, passed)


class Change(NamedTuple):
    """What one SAE does to n rows."""

    values: Tensor
    """[n, width]: the difference, or in reconstruct what takes the row's place; 0 where it does nothing."""
    touched: Tensor
    """bool [n]: rows that it writes to."""
    passed: Tensor
    """bool [n]: rows that it would write to, were they not excluded."""


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
    ratios: float = 0.0
    writes: int = 0

    @property
    def mean_relative_norm(self) -> float:
        return self.ratios / self.writes if self.writes else 0.0


class Site:
    """One hook point that is written to."""

    def __init__(self, point: HookPoint, hook: Hook, parts: list[Part]) -> None:
        self.point = point
        self.hook = hook
        self.parts = parts
        self._knows_sinks = any(part.knows_sinks for part in parts)
        self._limit: Tensor | None = None
        self._first = self._stop = self._prompt = 0
        self._computing: Part | None = None
        self.calls = 0
        self.failure: HookFault | None = None
        self.report: Tensor | None = None
        """[3 n + 2 + writing parts] float32: per row whether it was edited, whether it was passed by as excluded,
        |difference| / |x|; then whether x, the result, and each part's values are finite."""
        self._wrote: list[Part] = []

    def begin(self, first: int, stop: int, prompt: int) -> None:
        """The next step runs positions `first` … `stop` − 1."""
        self._first, self._stop, self._prompt = first, stop, prompt
        self.calls, self.failure, self.report = 0, None, None

    def edit(self, x: Tensor) -> Tensor | None:
        """What the hook calls."""
        self.calls += 1
        self._computing = None
        try:
            return self._edit(x)
        except Exception as error:  # anything here must not end the model's forward pass
            failure = explained(error, f"computing the SAE at {self.point}")
            # Lack of memory is nobody's fault; the SAE stays.
            at_fault = None if isinstance(failure, OutOfMemoryError) else self._at_fault
            self.failure = HookFault(at_fault, failure)
        return None

    @property
    def _at_fault(self) -> int:
        return (self._computing or self.parts[0]).attach_position

    def _edit(self, x: Tensor) -> Tensor | None:
        rows = x.reshape(-1, x.shape[-1])  # [n, width]
        count = self._stop - self._first
        if rows.shape != (count, self.hook.width):
            raise InternalError(f"the activation at {self.point} is {tuple(x.shape)}, not {count} × {self.hook.width}")
        covered = [part.covered(self._first, self._stop) for part in self.parts]
        writing = [(part, c) for part, c in zip(self.parts, covered, strict=True) if c is not None]
        measures = self._knows_sinks and self._first == 0
        if not (writing or measures):
            return None
        norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)  # [n]
        if measures:
            self._limit = SINK_FACTOR * norms[: self._prompt].median()
        if not writing:
            return None
        sinks = self._sinks(norms)
        changes = []
        for part, each in writing:
            self._computing = part
            changes.append((part, part.run(rows, each, sinks, part.left_out(self._first, self._stop))))
        self._computing = None
        new = rows
        for part, change in changes:
            if part.reconstructs:
                new = torch.where(change.touched[:, None], change.values.to(rows.dtype), new)
        for part, change in changes:
            if not part.reconstructs:
                wide = torch.promote_types(rows.dtype, change.values.dtype)
                moved = (new.to(wide) + change.values.to(wide)).to(rows.dtype)
                new = torch.where(change.touched[:, None], moved, new)
        edited = torch.stack([change.touched for _, change in changes]).any(dim=0)
        passed = torch.stack([change.passed for _, change in changes]).any(dim=0)
        moved = torch.linalg.vector_norm(new.float() - rows.float(), dim=-1)
        ratio = moved / norms.clamp_min(torch.finfo(torch.float32).tiny)
        finite = [torch.isfinite(each).all() for each in (norms, new, *(change.values for _, change in changes))]
        self._wrote = [part for part, _ in changes]
        self.report = torch.cat((edited.float(), (passed & ~edited).float(), ratio, torch.stack(finite).float()))
        return new.reshape(x.shape)

    def _sinks(self, norms: Tensor) -> Tensor:
        """[n] bool."""
        if not self._knows_sinks:
            return torch.zeros_like(norms, dtype=torch.bool)
        if self._limit is None:
            raise InternalError("the prompt's median norm was not measured")
        sinks = norms > self._limit
        if self._first == 0:
            sinks[0] = True
        return sinks

    def settle(self, tally: Tally) -> None:
        """Count what was written; raise `HookFault` where it could not be."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        if self.calls != 1:
            detail = f"the model ran {self.point} {self.calls} times in one step, not once"
            raise HookFault(self.parts[0].attach_position, InternalError(detail))
        if self.report is None:
            return
        count = self._stop - self._first
        values = self.report.tolist()
        self.report = None
        x_finite, new_finite, *each_finite = values[3 * count :]
        if not x_finite:
            raise HookFault(None, InternalError(f"the model's activation at {self.point} is not finite"))
        faulty = next((part for part, ok in zip(self._wrote, each_finite, strict=True) if not ok), None)
        if faulty is not None or not new_finite:
            at_fault = (faulty or self._wrote[0]).attach_position
            raise HookFault(at_fault, InternalError(f"the SAE's result at {self.point} is not finite"))
        for row in range(count):
            if values[row]:
                tally.edited.add(self._first + row)
                tally.ratios += values[2 * count + row]
                tally.writes += 1
            elif values[count + row]:
                tally.excluded.add(self._first + row)


class Applied:
    """An intervention, ready for one request."""

    def __init__(
        self,
        sites: Sequence[Site],
        readers: Sequence[tuple[Part, Hook]],
        prompt: int,
        probes: Sequence[Probe] = (),
        marks: Marks | None = None,
    ) -> None:
        self.tally = Tally()
        self._sites = sites
        self._readers = readers
        """SAEs that read elsewhere than they write, and where."""
        self._probes = probes
        self._prompt = prompt
        self._marks = marks

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
    ) -> Applied:
        """The SAEs at their hook points; `prompt` is the number of prompt tokens. Raises as `Architecture.hook`."""
        points = dict.fromkeys(part.write_at for part in parts)
        sites = [Site(at, architecture.hook(at), [part for part in parts if part.write_at == at]) for at in points]
        readers = [(part, architecture.hook(part.read_at)) for part in parts if part.read_at != part.write_at]
        return cls(sites, readers, prompt, probes, marks)

    @contextmanager
    def step(self, first: int, stop: int) -> Iterator[None]:
        """The hooks are on the model inside of this block, for a forward pass of positions `first` … `stop` − 1."""
        handles = []
        try:
            # Probes and readers first: at a hook point that is also written to, they see what arrives.
            for probe in self._probes:
                probe.begin(first, stop)
                handles.append(probe.hook.install(probe.see))
            for part, hook in self._readers:
                part.read = None
                handles.append(hook.install(_reader(part, hook)))
            for site in self._sites:
                site.begin(first, stop, self._prompt)
                handles.append(site.hook.install(site.edit))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for part, _ in self._readers:
                part.read = None

    def settle(self) -> None:
        """After a step: count what it wrote; `HookFault` if the intervention did not reach what it should."""
        for site in self._sites:
            site.settle(self.tally)

    def told(self) -> tuple[Activations, ...]:
        """After a step: what the SAEs that are watched read in it; `HookFault` if one could not."""
        told = []
        for probe in self._probes:
            try:
                told.append(probe.take())
                continue
            except Exception as error:  # whatever torch raises ends this text
                failure = explained(error, "computing the SAE's activations")
            raise HookFault(None if isinstance(failure, OutOfMemoryError) else probe.at_fault, failure)
        return tuple(told)


def _reader(part: Part, hook: Hook) -> Callable[[Tensor], None]:
    def read(x: Tensor) -> None:
        part.read = (x.clone() if hook.in_place else x).reshape(-1, x.shape[-1])

    return read
