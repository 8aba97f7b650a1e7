"""The state after a start of the service: device memory is empty, and deaths are counted."""

from __future__ import annotations

from msgspec.structs import replace

from .. import events as ev
from ..state import MAX_ATTEMPTS, AttachmentState, ModelState, State


def wanted_after_start(state: State, payload: ev.ActorStarted) -> State:
    """Device memory is empty: everything in it is wanted but missing.

    What an earlier start failed to bring back is tried again while it still belongs to this model and these files,
    and while no one has taken its place.
    """
    model = state.model
    if model is not None and (
        model.status == "loaded" or (model.status == "error" and model.restored and model.attempts < MAX_ATTEMPTS)
    ):
        attempts = 0 if model.status == "loaded" else model.attempts
        model = replace(model, status="loading", restored=True, attempts=attempts, error=None)
    room = payload.max_attachments - sum(a.status != "failed" for a in state.attachments)
    attachments = []
    for attachment in state.attachments:
        if attachment.status == "attached":
            attachments.append(replace(attachment, status="attaching", restored=True, attempts=0))
        elif attachment.status == "failed" and room > 0 and _retried(attachment, state, model):
            attachments.append(replace(attachment, status="attaching", error=None))
            room -= 1
        else:
            attachments.append(attachment)
    return replace(
        state,
        running=True,
        max_attachments=payload.max_attachments,
        drain_seconds=payload.drain_seconds,
        model=model,
        attachments=tuple(attachments),
    )


def _retried(attachment: AttachmentState, state: State, model: ModelState | None) -> bool:
    """Whether a start tries again what an earlier one failed to bring back."""
    record = state.saes.get(attachment.sae_id)
    return (
        attachment.attempts < MAX_ATTEMPTS
        and model is not None
        and model.status == "loading"
        and model.request_position == attachment.model_position
        and record is not None
        and record.status == "cached"
        and record.has_weights(attachment.weights_sha256)
        and not any(a.sae_id == attachment.sae_id and a is not attachment for a in state.attachments)
    )


def in_a_row(attempts: int) -> int:
    """Deaths that still count after a reported failure: none, unless they were its cause."""
    return attempts if attempts >= MAX_ATTEMPTS else 0


def interrupted(state: State, payload: ev.EffectInterrupted) -> State:
    """Count the death with the effect that was under way."""
    match payload.effect:
        case "load_model":
            model = state.model
            if model is None or model.request_position != payload.request_position:
                return state
            return replace(state, model=replace(model, attempts=payload.attempt))
        case "attach" | "detach":
            return replace(
                state,
                attachments=tuple(
                    replace(a, attempts=payload.attempt)
                    if payload.request_position in (a.request_position, a.detach_position)
                    else a
                    for a in state.attachments
                ),
            )
        case _:
            record = state.saes.get(payload.sae_id or "")
            if record is None or record.request_position != payload.request_position:
                return state
            return replace(state, saes={**state.saes, record.sae_id: replace(record, attempts=payload.attempt)})
