"""How the runs change: the part of `evolve` for measurements."""

from __future__ import annotations

from msgspec.structs import replace

from .. import events as ev
from ..events import Draft
from ..measuring.state import RunState
from ..structs import filled

Runs = dict[str, RunState]


def runs_after(runs: Runs, event: Draft, payload: ev.Payload) -> Runs:
    at = event.position
    if isinstance(payload, ev.RunRequested):
        made = filled(
            RunState, payload, status="open", request_position=at, created_at=event.time, position=at, error=None
        )
        return {**runs, payload.run_id: made}
    run = runs.get(getattr(payload, "run_id", None) or "")
    if run is None:
        return runs
    if isinstance(payload, ev.RunDeleted):
        return {name: each for name, each in runs.items() if name != payload.run_id}
    if getattr(payload, "request_position", None) != run.request_position or run.status != "open":
        return runs
    match payload:
        case ev.RunCompleted():
            run = replace(
                run,
                status="completed",
                rows=payload.rows,
                rows_sha256=payload.rows_sha256,
                summary=payload.summary,
                environments=tuple(sorted(payload.environments)),
                position=at,
            )
        case ev.RunFailed():
            run = replace(run, status="failed", error=payload.error, position=at)
        case ev.RunCancelled():
            run = replace(run, status="cancelled", position=at)
        case ev.EffectInterrupted():
            run = replace(run, attempts=payload.attempt, progress=payload.progress or 0)
    return {**runs, run.run_id: run}
