"""The outcome of a command, and the answer about one that is still open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from ..events import Event, GenerationFinished, Payload, Problem
from ..evolve import closes
from .fields import Position


class AcceptedCommand(Struct, frozen=True, kw_only=True):
    """On record, not done yet."""

    command_id: str
    position: Position
    status: Literal["accepted"]
    sae_id: str | UnsetType = UNSET
    """The SAE of a download."""
    run_id: str | UnsetType = UNSET


class Outcome(Struct, frozen=True, kw_only=True):
    """The outcome of a command."""

    command_id: str
    status: Literal["accepted", "completed", "failed"]
    position: Position
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
        elif isinstance(payload, GenerationFinished):
            # A text under a key; with several prompts the first that failed is the answer.
            error = error or payload.error
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
    if payload.type == "RunCancelled" and event.command_id != command_id:
        return Problem(code="run_not_running", detail="the run was cancelled", fields={"reason": "cancelled"})
    error = getattr(payload, "error", None)
    return error if isinstance(error, Problem) else None
