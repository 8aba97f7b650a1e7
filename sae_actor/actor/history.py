"""A command in the log: its events, its outcome, and whether a repeated key means the same command."""

from __future__ import annotations

import hashlib
import uuid

import msgspec

from ..domain import events as ev
from ..domain.events import Event
from ..domain.evolve import OPENING, closes
from ..errors import IdempotencyKeyReusedError
from ..ports import EventLog
from ..subscriptions import PAGE

OUTCOMES = tuple(name for name, cls in ev.PAYLOADS.items() if "request_position" in cls.__struct_fields__)
"""Event types that may end a request."""


def command_id_of(principal: str, key: str | None) -> str:
    """Random without a key; with one it follows from principal and key, so that the log itself remembers it."""
    if key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(f"{principal}\n{key}".encode()).hexdigest()))


async def accepted_events(log: EventLog, command_id: str) -> list[Event]:
    """The events of an accepted command; empty for one that is unknown or was refused."""
    return [event for event in await log.of_command(command_id) if event.type != "CommandRejected"]


async def with_outcome(log: EventLog, events: list[Event]) -> list[Event]:
    """The events of a closed command and its closing event, which may be under another command's id."""
    first = events[0].payload()
    asked = getattr(first, "joined", None) or events[0].position
    if type(first) not in OPENING or any(_ends(event, asked) for event in events):
        return events
    after = asked
    while page := await log.read(after, PAGE, OUTCOMES):
        shared = next((event for event in page if _ends(event, asked)), None)
        if shared is not None:
            return sorted([*events, shared], key=lambda event: event.position)
        after = page[-1].position
    return events


def _ends(event: Event, request_position: int) -> bool:
    payload = event.payload()
    return payload is not None and closes(payload) and getattr(payload, "request_position", None) == request_position


def same_request(intent: msgspec.Raw, request_sha256: str | None) -> None:
    """Raises `IdempotencyKeyReusedError` unless the recorded intent came from an equal command, or text."""
    if msgspec.json.decode(intent).get("request_sha256") != request_sha256:
        raise IdempotencyKeyReusedError("the idempotency key was used for another command")
