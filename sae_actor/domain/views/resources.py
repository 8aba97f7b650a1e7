"""What is shown of a state: the resources of the contract, as plain values ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..events import Event, Payload, Problem
from ..evolve import closes
from ..former_hook_names import reread
from ..placement import outdated
from ..state import AttachmentState, SaeRecord, State

View = dict[str, Any]


def sae_view(record: SaeRecord, state: State) -> View:
    """One SAE, section 4 of the contract."""
    sae = record.sae and reread(record.sae)
    mine = [a for a in state.attachments if a.sae_id == record.sae_id]
    attachment = next((a for a in mine if a.status != "failed"), None)
    lost = next((a for a in mine if a.status == "failed"), None) if attachment is None else None
    dtype = mine[0].dtype if mine else "float32"
    return {
        "sae_id": record.sae_id,
        "repository_id": record.repository_id,
        "revision": record.revision,
        "commit": record.commit,
        "path": record.path,
        "name": _name(record),
        "source": record.source,
        "status": _status(record, attachment, lost),
        "format": sae and sae.format,
        "architecture": sae and sae.architecture,
        "d_in": sae and sae.d_in,
        "d_sae": sae and sae.d_sae,
        "d_out": sae and sae.d_out,
        "dtype": sae and sae.dtype,
        "trained_on": sae and sae.trained_on,
        "trained_layer": sae and sae.trained_layer,
        "hook_name": sae and sae.hook_name,
        "hook_point": sae and _plain(sae.hook_point),
        "hook_point_out": sae and _plain(sae.hook_point_out),
        "files": _plain(record.files),
        "file_size_bytes": sum(file.bytes for file in record.files),
        "memory_bytes": sae and sae.memory_bytes(dtype),
        "weights_sha256": record.weights_sha256 or None,
        "prepend_bos": sae and sae.prepend_bos,
        "ignored": dict(sae.ignored) if sae else {},
        "weights_files": _plain(record.weights),
        "warnings": [*(sae.warnings if sae else ()), *_outdated(record, attachment, state)],
        "created_at": record.created_at,
        "error": _plain(record.error if lost is None else lost.error),
    }


def _outdated(record: SaeRecord, attachment: AttachmentState | None, state: State) -> tuple[str, ...]:
    facts = None if state.model is None else state.model.facts
    if record.sae is None or attachment is None or facts is None:
        return ()
    return outdated(record.sae, facts, attachment.hook_point, attachment.hook_point_out)


def _name(record: SaeRecord) -> str:
    path = record.path or record.repository_id or record.sae_id
    return path.rstrip("/").rpartition("/")[2]


def _status(record: SaeRecord, attachment: AttachmentState | None, lost: AttachmentState | None) -> str:
    if attachment is not None:
        return "attaching" if attachment.status == "attaching" else "attached"
    return "error" if lost is not None and record.status == "cached" else record.status


def attachment_fields(attachment: AttachmentState) -> View:
    return {
        "is_attached": attachment.status == "attached",
        "sae_id": attachment.sae_id,
        "layer": attachment.hook_point.layer,
        "hook_point": _plain(attachment.hook_point),
        "hook_point_out": _plain(attachment.hook_point_out),
        "mode": attachment.mode,
        "exclude": _plain(attachment.exclude),
        "dtype": attachment.dtype,
        "attached_at": attachment.attached_at,
        "memory_bytes": attachment.memory_bytes,
        "device_bytes": attachment.device_bytes,
        "steering": _plain(attachment.steering),
        "steering_enabled": attachment.enabled,
        "position": attachment.position,
    }


NOT_ATTACHED: View = dict.fromkeys(
    ("sae_id", "layer", "hook_point", "hook_point_out", "mode", "exclude", "dtype", "attached_at",
     "memory_bytes", "device_bytes", "steering", "steering_enabled", "position")
)  # fmt: skip


def attachment_view(state: State) -> View:
    """The Attachment resource: the first one's fields, and all of them in `attachments`."""
    shown = [attachment_fields(a) for a in state.attached]
    first = shown[0] if shown else {"is_attached": False, **NOT_ATTACHED}
    return {**first, "attachments": shown}


def model_view(state: State) -> View:
    model = state.model
    facts = model.facts if model is not None else None
    return {
        "status": model.status if model is not None else "none",
        "model_id": facts.model_id if facts else model and model.model,
        "revision": model and model.revision,
        "commit": facts and facts.commit,
        "model_type": facts and facts.model_type,
        "dtype": facts.dtype if facts else model and model.dtype,
        "device": facts.device if facts else model and model.device,
        "num_layers": facts and facts.num_layers,
        "hidden_size": facts and facts.hidden_size,
        "context_length": facts and facts.context_length,
        "memory_bytes": facts and facts.memory_bytes,
        "error": model and _plain(model.error),
    }


def running_view(state: State) -> View | None:
    """How the loaded model makes texts; None where there is none."""
    facts = None if state.model is None else state.model.facts
    if facts is None:
        return None
    return {
        "model_id": facts.model_id,
        "batching": facts.environment.get("batching") is True,
        "deterministic": facts.can_be_deterministic,
        "cache_positions": facts.cache_positions,
    }


def steering_view(attachment: AttachmentState) -> View:
    return {
        "sae_id": attachment.sae_id,
        "features": _plain(attachment.steering),
        "enabled": attachment.enabled,
        "position": attachment.position,
    }


def state_view(state: State) -> View:
    """The whole state at its position, as `/api/state` and `log state --json` show it."""
    return {
        "position": state.position,
        "model": model_view(state) if state.model is not None else None,
        "saes": {sae_id: sae_view(record, state) for sae_id, record in sorted(state.saes.items())},
        "attachments": [attachment_fields(a) for a in state.attached],
        "monitors": [_monitor(a) for a in state.attached if a.monitoring is not None],
        "commands": [_plain(c) for c in state.commands.values()],
        "generations": [_plain(g) for g in state.generations.values()],
    }


def _monitor(attachment: AttachmentState) -> View:
    return {
        "sae_id": attachment.sae_id,
        **_plain(attachment.monitoring),
        "position": attachment.monitoring_position,
    }


def degraded_view(state: State) -> list[View]:
    """What is wanted, or was there before the last start, and was given up, and why: the model (`sae_id` null), then
    SAEs."""
    model = state.model
    lost: list[View] = []
    if model is not None and model.status == "error":
        lost.append({"sae_id": None, "model": model.model, "error": _plain(model.error)})
    return lost + [
        {"sae_id": a.sae_id, "hook_point": _plain(a.hook_point), "error": _plain(a.error)} for a in state.degraded
    ]


def waiting_for(state: State) -> list[str]:
    """Why the service is not ready yet; empty when everything wanted is in place or given up."""
    reasons = []
    if not state.running:
        reasons.append("the log is being replayed")
    if state.model is not None and state.model.status == "loading":
        reasons.append(f"model {state.model.model} is being loaded")
    return [*reasons, *(f"SAE {each['sae_id']} is being attached" for each in coming_back(state))]


def coming_back(state: State) -> list[View]:
    """The SAEs that were attached before the last start and are on their way to the model again."""
    return [
        {"sae_id": a.sae_id, "hook_point": _plain(a.hook_point), "mode": a.mode}
        for a in state.attachments
        if a.restored and a.status == "attaching"
    ]


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a command."""

    command_id: str
    status: Literal["accepted", "completed", "failed"]
    position: int
    """Position of its first event, the same in every answer about it."""
    events: tuple[Event, ...]
    error: Problem | None = None


def outcome(command_id: str, events: Sequence[Event], *, is_open: bool) -> Outcome:
    """The outcome that the events of a command (its own, and the shared one it waited for) come to."""
    error: Problem | None = None
    for event in events:
        payload = event.payload()
        if payload is not None and closes(payload):
            error = _failure(payload, command_id, event)
    status: Literal["accepted", "completed", "failed"] = "failed" if error is not None else "completed"
    return Outcome(
        command_id=command_id,
        status="accepted" if is_open else status,
        position=events[0].position,
        events=tuple(events),
        error=error,
    )


def _failure(payload: Payload, command_id: str, event: Event) -> Problem | None:
    cancelled = payload.type == "DownloadCancelled" and event.command_id != command_id
    if cancelled:
        return Problem(code="sae_download_failed", detail="the download was cancelled", fields={"reason": "cancelled"})
    error = getattr(payload, "error", None)
    return error if isinstance(error, Problem) else None


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value)
