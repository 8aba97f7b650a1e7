"""A run, as it is shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..events import Problem, RunKind, RunSae, RunTexts, RunVariant
from ..measuring.state import RunState
from ..measuring.waiting import next_run, waits_for
from ..state import State
from ..structs import filled
from .fields import Count, Position, Time


class RunView(Struct, frozen=True, kw_only=True):
    run_id: str
    name: str | None
    kind: RunKind
    spec: Annotated[dict[str, Any], Meta(description="without the texts")]
    state: Literal["waiting", "running", "completed", "failed", "cancelled"]
    reason: Annotated[str | None, Meta(description="why it waits")]
    rows: Annotated[Count, Meta(description="that are durable")]
    total: Annotated[Count | None, Meta(description="rows when it is done; null: not known")]
    summary: dict[str, Any] | None
    rows_sha256: Annotated[str | None, Meta(description="of all rows as NDJSON")]
    texts: tuple[RunTexts, ...]
    saes: tuple[RunSae, ...]
    variants: Annotated[tuple[RunVariant, ...], Meta(description="of a sweep, as they were when it was asked for")]
    seeds: tuple[int, ...]
    position: Annotated[Position, Meta(description="of its RunRequested")]
    environment: Annotated[str | None, Meta(description="digest of the environment of the last rows")]
    created_at: Time
    error: Problem | None


class RunList(Struct, frozen=True, kw_only=True):
    runs: tuple[RunView, ...]


class OpenRun(Struct, frozen=True, kw_only=True):
    """A run that is owed."""

    run_id: str
    kind: RunKind
    name: str | None
    position: Position


def open_runs(state: State) -> tuple[OpenRun, ...]:
    runs = (run for run in state.runs.values() if run.status == "open")
    return tuple(filled(OpenRun, run, position=run.request_position) for run in runs)


def run_view(run: RunState, state: State, *, rows: int, paused: str | None = None) -> RunView:
    """rows: how many are durable. paused: why it does not go on though nothing that it names is missing."""
    status, reason = _status(run, state, paused)
    return filled(
        RunView,
        run,
        state=status,
        reason=reason,
        rows=rows,
        total=total_of(run, state),
        position=run.request_position,
        environment=run.environments[-1] if run.environments else None,
    )


def _status(run: RunState, state: State, paused: str | None) -> tuple[str, str | None]:
    if run.status != "open":
        return run.status, None
    if (why := waits_for(run, state) or paused) is not None:
        return "waiting", why
    first = next_run(state)
    if not state.running or first is None or first.run_id != run.run_id:
        return "waiting", "another run computes" if state.running else "the service is not running"
    return "running", None


def total_of(run: RunState, state: State) -> int | None:
    """Rows when it is done."""
    if run.status == "completed":
        return run.rows
    if run.kind == "evaluate":
        texts = sum(each.count for each in run.texts)
        return None if run.spec.get("max_tokens") is not None else -(-texts // 64)
    if run.kind in ("profile", "contrast"):
        record = state.saes.get(run.saes[0].sae_id) if run.saes else None
        d_sae = None if record is None or record.sae is None else record.sae.d_sae
        return d_sae if run.kind == "profile" or d_sae is None else min(d_sae, int(run.spec.get("top", 20)))
    prompts = sum(each.count for each in run.texts if each.role == "prompts")
    return prompts * len(run.variants) * max(1, len(run.seeds))
