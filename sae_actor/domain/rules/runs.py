"""The rules of runs: ask for one, cancel it, delete it, and how it ends."""

from __future__ import annotations

import hashlib

from ... import errors
from .. import events as ev
from ..commands import CancelRun, DeleteRun, RequestedVariant, RequestRun
from ..events import Problem, RunVariant
from ..measuring.state import RunState
from ..measuring.waiting import model_of, sae_of
from ..messages import OwnIntervention
from ..refs import intervention_sha256
from ..reports import MeasuredRun
from ..state import State
from ..structs import filled
from .admission import as_expected, attached_sae, intervention_of
from .attachments import loaded_model
from .edits import needs_encoder


def request(command: RequestRun, state: State) -> list[ev.Payload]:
    """The API has already written the texts. Variants are frozen as they are now."""
    model = model_of(loaded_model(state))
    for sae_id in command.read:
        attached_sae(state, sae_id, ())
        if (sae := state.saes[sae_id].sae) is not None:
            needs_encoder(sae, sae_id, f"a run of kind {command.kind}")
    variants = tuple(_frozen(each, state) for each in command.variants)
    needed = dict.fromkeys([*command.read, *(sae.sae_id for each in variants for sae in each.intervention)])
    saes = []
    for sae_id in needed:
        attachment = state.attachment(sae_id)
        if attachment is None:
            raise errors.SAENotAttachedError(f"{sae_id} is not attached", sae_id=sae_id)
        saes.append(sae_of(attachment))
    seeds = command.seeds or ((_seed(command.run_id),) if command.kind == "sweep" else ())
    own = {"model": model, "saes": tuple(saes), "variants": variants, "seeds": seeds, "request_sha256": ""}
    return [filled(ev.RunRequested, command, **own)]


def _frozen(asked: RequestedVariant, state: State) -> RunVariant:
    """What changes nothing is no part of it: the run need not wait for that."""
    as_expected(asked, state)
    own = filled(OwnIntervention, asked)
    intervention = tuple(sae for sae in intervention_of(own, state) if sae.changes_text)
    return RunVariant(
        name=asked.name,
        intervention=intervention,
        intervention_sha256=intervention_sha256(intervention),
        baseline=asked.baseline,
    )


def _seed(run_id: str) -> int:
    """By chance, as the id is."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:4]) >> 1


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
