"""The state after a start of the service: device memory is empty, and crashes are counted."""

from __future__ import annotations

from msgspec.structs import replace

from .. import events as ev
from ..state import MAX_ATTEMPTS, AttachmentState, ModelState, State


def wanted_after_start(state: State, payload: ev.ActorStarted) -> State:
    """The state after a start: the model and the SAEs have to be loaded again.

    An SAE that an earlier start failed to attach again is tried again if its model and its files are still the same,
    and if it is not attached otherwise.
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
        log_file=payload.log_file,
        max_attachments=payload.max_attachments,
        drain_seconds=payload.drain_seconds,
        model=model,
        attachments=tuple(attachments),
    )


def _retried(attachment: AttachmentState, state: State, model: ModelState | None) -> bool:
    """Whether this start tries again to attach an SAE that an earlier start failed to attach."""
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
    """Crashes that still count after a reported failure: none, unless they were its cause."""
    return attempts if attempts >= MAX_ATTEMPTS else 0


def interrupted(state: State, payload: ev.EffectInterrupted) -> State:
    """Count the crash as an attempt of the effect that it interrupted."""
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
