"""Why a run cannot go on: its model, or an SAE that it names, is not there as it was."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from ..events import RunModel, RunSae
from ..refs import ModelFacts
from ..weights import names

if TYPE_CHECKING:
    from ..state import AttachmentState, State
    from .state import RunState


def model_of(facts: ModelFacts) -> RunModel:
    """The model as a run names it."""
    files = facts.environment.get("model_files")
    digest = hashlib.sha256(msgspec.json.encode(files, order="sorted")).hexdigest() if files else None
    return RunModel(model_id=facts.model_id, commit=facts.commit, files_sha256=digest)


def sae_of(attachment: AttachmentState) -> RunSae:
    return RunSae(
        sae_id=attachment.sae_id,
        weights_sha256=attachment.weights_sha256,
        hook_point=attachment.hook_point,
        hook_point_out=attachment.hook_point_out,
        dtype=attachment.dtype,
    )


def waits_for(run: RunState, state: State) -> str | None:
    """Why it waits; None if it can compute."""
    facts = None if state.model is None or state.model.status != "loaded" else state.model.facts
    if facts is None:
        return f"the model {run.model.model_id} is not loaded"
    found = model_of(facts)
    if (found.model_id, found.commit) != (run.model.model_id, run.model.commit):
        return f"another model is loaded than {run.model.model_id}"
    if None not in (found.files_sha256, run.model.files_sha256) and found.files_sha256 != run.model.files_sha256:
        return f"the files of {run.model.model_id} have changed"
    return next((why for sae in run.saes if (why := _missing(sae, state)) is not None), None)


def _missing(sae: RunSae, state: State) -> str | None:
    attachment = state.attachment(sae.sae_id)
    if attachment is None:
        return f"{sae.sae_id} is not attached"
    if attachment.weights_sha256 != sae.weights_sha256 and not names(sae.weights_sha256, attachment.weights_files):
        return f"{sae.sae_id} is attached with other weights"
    where = (attachment.hook_point, attachment.hook_point_out, attachment.dtype)
    if where != (sae.hook_point, sae.hook_point_out, sae.dtype):
        return f"{sae.sae_id} is attached at another hook point, or in another type"
    return None


def next_run(state: State) -> RunState | None:
    """The run that computes: the first, in the order of the log, that does not wait."""
    runs = sorted((run for run in state.runs.values() if run.status == "open"), key=lambda run: run.request_position)
    return next((run for run in runs if waits_for(run, state) is None), None)
