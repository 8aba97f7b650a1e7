"""`pending`: the effects that a state requires. `residents`: the model and SAEs that the device may keep.

After every turn the actor starts the pending effects that do not run, and cancels the running ones that are not
pending: retry, cancellation and recovery after a crash are this one mechanism.
"""

from __future__ import annotations

from collections.abc import Iterator

from .effects import (
    AttachEffect,
    DeleteEffect,
    DetachEffect,
    DownloadEffect,
    Effect,
    ImportEffect,
    LoadModelEffect,
    Residents,
)
from .state import State
from .structs import filled


def pending(state: State) -> tuple[Effect, ...]:
    """The effects that have to run, in the order of their intents in the log."""
    owed = [*_model(state), *_records(state), *_detaches(state), *_next_attach(state)]
    return tuple(sorted(owed, key=lambda effect: effect.request_position))


def residents(state: State) -> Residents:
    """The model and SAEs that the device may keep."""
    return Residents(
        model=state.model.request_position if state.model is not None and state.model.status != "error" else None,
        saes=tuple(a.request_position for a in state.attachments if a.status != "failed"),
    )


def _model(state: State) -> Iterator[Effect]:
    model = state.model
    if model is not None and model.status == "loading":
        yield filled(LoadModelEffect, model)


def _records(state: State) -> Iterator[Effect]:
    for record in state.saes.values():
        if record.status == "downloading" and record.source != "hub":
            yield filled(ImportEffect, record, path=record.coming_path or record.path or "")
        elif record.status == "downloading":
            whence = record.repository_id or "", record.revision or "main"
            yield filled(DownloadEffect, record, repository_id=whence[0], revision=whence[1])
        elif record.status == "deleting":
            kept = tuple(r.location for r in state.saes.values() if r.sae_id != record.sae_id and r.files)
            yield filled(DeleteEffect, record, kept=kept)


def _detaches(state: State) -> Iterator[Effect]:
    for attachment in state.attachments:
        if attachment.status == "detaching" and attachment.detach_position is not None:
            yield DetachEffect(
                request_position=attachment.detach_position,
                sae_id=attachment.sae_id,
                attach_position=attachment.request_position,
            )


def _next_attach(state: State) -> Iterator[Effect]:
    """One at a time, in the order of the log, once the model is there."""
    if state.model is None or state.model.status != "loaded":
        return
    for attachment in state.attachments:
        record = state.saes.get(attachment.sae_id)
        if attachment.status == "attaching" and record is not None and record.sae is not None:
            weights = {"weights_sha256": record.weights_sha256, "weights_files": record.weights}
            yield filled(AttachEffect, attachment, record, **weights)
            return
