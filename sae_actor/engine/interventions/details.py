"""What an intervention did at each position that a generation runs, and what its SAEs read there before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET

from ...errors import InternalError
from ...ports import FeatureChange, PositionDetails
from .hook_site import HookFault, SiteReport
from .probes import Probe, Row
from .sae_intervention import SaeIntervention


class Details:
    """Grows with each step of one generation; what has grown is handed out with its next token."""

    def __init__(self, parts: Sequence[SaeIntervention], before: Sequence[Probe], after: Mapping[Probe, Probe]) -> None:
        """The SAEs that write, in the request's order; probes of what arrives, and for each one at a hook point that is
        written to, the one of what leaves there."""
        self.before = before
        self.after = after
        for probe in after.values():
            probe.behind_others = True  # what the edits made of x is not the SAE's fault
        self._parts = parts
        self._run = range(0)
        self._found: list[PositionDetails] = []

    def begin(self, first: int, stop: int, row: int) -> None:
        """The next step runs positions `first` … `stop` − 1 as the rows from `row` on."""
        self._run = range(first, stop)
        for probe in (*self.before, *self.after.values()):
            probe.begin(first, stop, row)

    def add(self, reports: Sequence[SiteReport]) -> None:
        """After the step: what was done at each hook point. `HookFault` if an SAE could not be read."""
        held = {part: rows for report in reports for part, rows in report.held.items()}
        reads = [(probe, _rows(probe), _rows(self.after.get(probe, probe))) for probe in self.before]
        for row, position in enumerate(self._run):
            ratios = [each.ratios[row] for each in reports if each.edited and each.edited[row]]
            changes = [change for probe, old, new in reads for change in _changes(probe, old[row], new[row])]
            self._found.append(
                PositionDetails(
                    position=position,
                    edits=tuple(
                        (part.sae_id, index)
                        for part in self._parts
                        for index, where in enumerate(held.get(part, ()))
                        if where[row]
                    ),
                    relative_norm=sum(ratios) / len(ratios) if ratios else 0.0,
                    features=tuple(changes) if reads else UNSET,
                )
            )

    def taken(self) -> tuple[PositionDetails, ...]:
        """What was not handed out yet."""
        found, self._found = tuple(self._found), []
        return found


def _rows(probe: Probe) -> Sequence[Row]:
    if probe.failure is not None:
        raise HookFault(probe.at_fault, probe.failure)
    if probe.reading is None:
        raise HookFault(None, InternalError(f"{probe.watch.sae.sae_id} was not read"))
    return probe.reading.rows


def _changes(probe: Probe, before: Row, after: Row) -> list[FeatureChange]:
    return [
        FeatureChange(sae_id=probe.watch.sae.sae_id, feature=a.feature, before=a.activation, after=b.activation)
        for a, b in zip(before, after, strict=True)
    ]
