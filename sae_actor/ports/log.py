"""The event log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from msgspec import Struct

from ..domain.events import Draft, Event


class Head(Struct, frozen=True):
    """The last event of a log: its position (0: none yet) and hash (for an empty log: the genesis hash)."""

    position: int
    hash: str


class Verification(Struct, frozen=True, omit_defaults=True):
    """The result of `log verify`."""

    ok: bool
    """Every event in the log is the one that was written."""
    events: int
    head: Head
    first_bad: int | None = None
    detail: str | None = None
    clock_skew: tuple[int, ...] = ()
    """The first hundred events that are older than the event before them: the clock went back. This is no damage, since
    positions alone order a log."""
    unproven: bool = False
    """Nothing outside the log confirms where it ends: its last events may have been lost."""
    verified_from: int | None = None
    """From this position to the head all was verified by the process that says so (1: all of it); None if the log does
    not verify."""


class Follower(Protocol):
    """What looks for something in a log."""

    @property
    def complete(self) -> bool:
        """Whether further events can change nothing."""

    def feed(self, event: Event) -> None: ...


async def follow(events: AsyncGenerator[Event, None], follower: Follower) -> None:
    """Feed the events, as far as needed."""
    async with aclosing(events):
        async for event in events:
            follower.feed(event)
            if follower.complete:
                return


class EventLog(Protocol):
    """An append-only, hash-chained sequence of events, positions 1, 2, 3, … without a gap."""

    @property
    def log_id(self) -> str:
        """32 hex digits, chosen when the log was made. The event ids of streams begin with the first 8."""

    @property
    def head(self) -> Head:
        """The last durable event."""

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        """Store all drafts in one transaction after position `expected`, durable when this returns.

        Raises `LogConflictError` if the head is elsewhere, `DiskFullError` when there is no space (nothing
        stored), `LogError` after an I/O failure (the log takes no further append: stop the service).
        Cancelling the caller has no effect on the log: the append completes, or had not begun.
        """

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        """At most `limit` events with position above `after`, in order."""

    async def at(self, positions: Sequence[int]) -> list[Event]:
        """The events at these positions, which ascend; without those that the log does not have."""

    async def of_command(self, command_id: str) -> list[Event]:
        """All events of one command, in order: few, but two for each text of a request under a key."""

    async def created(self) -> str:
        """When the log was made, RFC 3339 UTC."""

    async def rows(self, after: int, limit: int) -> list[tuple[Any, ...]]:
        """Whole rows with position above `after`, as an export needs them: the fields of an event with salt and digest,
        in the order of `eventlog.chain.Row`. Fewer than `limit` where that is more than one reading looks at."""

    async def verify(self, *, full: bool = True, heads: Sequence[Head] = ()) -> Verification:
        """Walk the chain up to the head of now.

        full: from the first event on; else only what came after the last walk of this process, the first of which
        opened the log; what the last one found wrong stays wrong. heads: witnessed heads that the log must contain.
        """

    async def close(self) -> None: ...
