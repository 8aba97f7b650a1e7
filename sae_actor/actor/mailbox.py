"""The bounded mailbox: commands may be refused, reports never are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..domain.events import Event
from ..domain.messages import Message
from ..errors import MailboxFullError, SAEError


@dataclass(slots=True)
class Envelope:
    """A message and the future of its answer."""

    message: Message
    principal: str
    reply: asyncio.Future[Any]
    command_id: str | None = None
    keyed: bool = False
    """The sender chose an idempotency key: `command_id` follows from it and may be known already."""
    expected_revision: int | None = None
    decided: Message | None = None
    """The message for the rules in place of `message`: the same with raw strengths."""
    refused: SAEError | None = None
    """Refused before the rules see it: a strength that cannot be resolved."""
    begin: Callable[[Event], None] | None = None
    """Called in the turn, with each of its events, once they are durable."""
    weight: int = 1
    """The most events that it leads to: a turn stores a limited number."""
    reserved: bool = field(default=False)

    def answer(self, value: Any) -> None:
        """Set the reply. It is not an error if the sender no longer waits."""
        if not self.reply.done():
            self.reply.set_result(value)

    def fail(self, error: BaseException) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            # Mark it as read: the sender of a report may never look, and the actor logs its own failures.
            self.reply.exception()


class Mailbox:
    """First in, first out. `capacity` bounds the messages from outside; reports are always accepted."""

    def __init__(self, capacity: int = 256) -> None:
        self.capacity = capacity
        self._waiting: deque[Envelope] = deque()
        self._from_outside = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, envelope: Envelope) -> None:
        """Raises `MailboxFullError` for a message from outside when `capacity` of them wait."""
        if not envelope.reserved:
            if self._from_outside >= self.capacity:
                raise MailboxFullError(f"{self.capacity} commands are waiting", retry_after=1)
            self._from_outside += 1
        self._waiting.append(envelope)
        self._filled.set()

    async def take(self, most: int) -> list[Envelope]:
        """At least one envelope, in order; several only up to the total weight `most`."""
        while not self._waiting:
            await self._filled.wait()
        taken = [self._waiting.popleft()]
        weight = taken[0].weight
        while self._waiting and weight + self._waiting[0].weight <= most:
            taken.append(self._waiting.popleft())
            weight += taken[-1].weight
        self._from_outside -= sum(not envelope.reserved for envelope in taken)
        if not self._waiting:
            self._filled.clear()
        return taken

    def drain(self, *, reserved: bool = True) -> list[Envelope]:
        """Remove and return everything that still waits; with `reserved=False` reports stay."""
        left = [each for each in self._waiting if reserved or not each.reserved]
        self._waiting = deque(each for each in self._waiting if not reserved and each.reserved)
        self._from_outside = 0
        if not self._waiting:
            self._filled.clear()
        return left
