"""A command in the log: its events, its outcome, and whether a repeated key means the same command."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..domain import events as ev
from ..domain.events import Draft, Event
from ..domain.evolve import COMMAND_OF_INTENT, closes
from ..errors import IdempotencyKeyReusedError
from ..ports import EventLog
from ..subscriptions import PAGE

ANSWERING_TYPES = tuple(name for name, cls in ev.PAYLOADS.items() if "request_position" in cls.__struct_fields__)
"""Event types with a `request_position`, so possibly an outcome."""
REFUSED = ev.CommandRejected.__name__
"""Type of the event that records a refusal. It may carry the id of an accepted command with the same key."""


def command_id_of(principal: str, key: str | None) -> str:
    """Random without a key. With a key it is derived from principal and key, so that the log finds a repeated one."""
    if key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(f"{principal}\n{key}".encode()).hexdigest()))


async def accepted_events(log: EventLog, command_id: str) -> list[Event]:
    """The events of an accepted command; empty for one that is unknown or was refused."""
    return [event for event in await log.of_command(command_id) if event.type != REFUSED]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A command that is on record."""

    command_id: str
    events: list[Event]
    """Its events so far; `close` adds those that end it."""
    revision: int
    """Revision after its first events, or earlier: the client has not seen later changes by others."""
    closed: asyncio.Future[None] = field(compare=False)
    """Done once the command is closed, or this process will not close it."""

    @property
    def position(self) -> int:
        """Position of its first event, the same in every answer about it."""
        return self.events[0].position

    def close(self, recorded: Sequence[Event]) -> None:
        """Add the command's own events of a turn, and the one that ends it."""
        own = (event for event in recorded if event.command_id == self.command_id or _ends(event, self.events))
        last = self.events[-1].position
        self.events.extend([event for event in own if event.position > last and event.type != REFUSED])
        self.closed.set_result(None)


async def with_outcome(log: EventLog, events: Sequence[Event]) -> Sequence[Event]:
    """The events of a closed command and its closing event, which may be under another command's id."""
    first = events[0].payload()
    if isinstance(first, ev.GenerationStarted) and events[0].command_id is not None:
        return await accepted_events(log, events[0].command_id)
    after, rows = getattr(first, "joined", None) or events[0].position, 1
    while type(first) in COMMAND_OF_INTENT and not any(_ends(event, events) for event in events):
        # The end is near its beginning: a page of them might be all that came since.
        page = await log.read(after, rows, ANSWERING_TYPES)
        if not page:
            break
        events = sorted([*events, *(event for event in page if _ends(event, events))], key=lambda each: each.position)
        after, rows = page[-1].position, min(rows * 2, PAGE)
    return events


def _ends(event: Event, events: Sequence[Event]) -> bool:
    """Whether `event` ends the request of the command with these `events`, or the request that it joined."""
    request = getattr(events[0].payload(), "joined", None) or events[0].position
    payload = event.payload()
    return payload is not None and closes(payload) and getattr(payload, "request_position", None) == request


def same_request(intent: Draft, request_sha256: str | None) -> None:
    """Raises `IdempotencyKeyReusedError` unless the recorded intent came from an equal command, or text."""
    if getattr(intent.payload(), "request_sha256", None) != request_sha256:
        raise IdempotencyKeyReusedError("the idempotency key was used for another command")
