"""The rules of runs: ask for one, cancel it, delete it, and how it ends."""

from __future__ import annotations

from ... import errors
from .. import events as ev
from ..commands import CancelRun, DeleteRun, RequestRun
from ..events import Problem
from ..measuring.state import RunState
from ..measuring.waiting import model_of, sae_of
from ..reports import MeasuredRun
from ..state import State
from ..structs import filled
from .admission import attached_sae
from .attachments import loaded_model
from .edits import needs_encoder


def request(command: RequestRun, state: State) -> list[ev.Payload]:
    """The API has already written the texts, and resolved the variants."""
    model = model_of(loaded_model(state))
    for sae_id in command.read:
        attached_sae(state, sae_id, ())
        if (sae := state.saes[sae_id].sae) is not None:
            needs_encoder(sae, sae_id, f"a run of kind {command.kind}")
    needed = dict.fromkeys([*command.read, *(sae.sae_id for each in command.variants for sae in each.intervention)])
    saes = []
    for sae_id in needed:
        attachment = state.attachment(sae_id)
        if attachment is None:
            raise errors.SAENotAttachedError(f"{sae_id} is not attached", sae_id=sae_id)
        saes.append(sae_of(attachment))
    return [filled(ev.RunRequested, command, model=model, saes=tuple(saes), request_sha256="")]


def known(state: State, run_id: str) -> RunState:
    run = state.runs.get(run_id)
    if run is None:
        raise errors.RunNotFoundError(f"there is no run {run_id}", run_id=run_id)
    return run


def cancel(command: CancelRun, state: State) -> list[ev.Payload]:
    run = known(state, command.run_id)
    if run.status != "open":
        raise errors.RunNotRunningError(f"nothing to cancel: {run.run_id} has {_ended(run)}", run_id=run.run_id)
    return [ev.RunCancelled(request_position=run.request_position, run_id=run.run_id)]


def _ended(run: RunState) -> str:
    return {"completed": "completed", "failed": "failed", "cancelled": "been cancelled"}.get(run.status, run.status)


def delete(command: DeleteRun, state: State) -> list[ev.Payload]:
    run = known(state, command.run_id)
    deleted = ev.RunDeleted(run_id=run.run_id)
    if run.status != "open":
        return [deleted]
    return [ev.RunCancelled(request_position=run.request_position, run_id=run.run_id), deleted]


def completed(at: int, found: MeasuredRun, state: State) -> list[ev.Payload]:
    run = _under_way(state, at)
    return [] if run is None else [filled(ev.RunCompleted, found, run)]


def failed(at: int, error: Problem, state: State) -> list[ev.Payload]:
    run = _under_way(state, at)
    return [] if run is None else [ev.RunFailed(request_position=at, run_id=run.run_id, error=error)]


def without_sae(sae_id: str, state: State) -> list[ev.Payload]:
    """The runs that cannot go on because an SAE is deleted."""
    why = Problem(code="sae_not_found", detail=f"{sae_id} was deleted", fields={"sae_id": sae_id})
    lost = (run for run in state.runs.values() if run.status == "open" and any(s.sae_id == sae_id for s in run.saes))
    return [ev.RunFailed(request_position=run.request_position, run_id=run.run_id, error=why) for run in lost]


def _under_way(state: State, at: int) -> RunState | None:
    return next((run for run in state.runs.values() if run.request_position == at and run.status == "open"), None)
