"""Which profile counts for an SAE: the newest of its weights, where they were trained."""

from __future__ import annotations

from collections.abc import Iterable

from ..domain.measuring.state import RunState
from ..domain.state import SaeRecord


def counts(run: RunState, record: SaeRecord) -> bool:
    """Whether it measured these weights, where they were trained: elsewhere a feature does other things."""
    if run.kind != "profile" or not run.saes or record.sae is None:
        return False
    mine = run.saes[0]
    trained_at = record.sae.hook_point
    there = trained_at is None or trained_at == mine.hook_point
    return there and mine.sae_id == record.sae_id and record.has_weights(mine.weights_sha256)


def newest(runs: Iterable[RunState], record: SaeRecord) -> RunState | None:
    """Of the completed ones."""
    found = (run for run in runs if run.status == "completed" and counts(run, record))
    return max(found, key=lambda run: run.request_position, default=None)
