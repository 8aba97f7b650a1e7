"""The event log in memory: the twin of `SqliteLog`, with the same chain."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import islice
from typing import Any

from sae_actor.domain.events import Draft, Event
from sae_actor.errors import LogConflictError, LogError
from sae_actor.eventlog.chain import Row, Salts, Walk, as_read, event_of, genesis, link_all, sound, unsound
from sae_actor.eventlog.writer import check_append
from sae_actor.ports import Head, Verification
from sae_actor.ports.clock import SystemClock


class MemoryLog:
    """`EventLog` without a disk: "durable" means that it lives as long as this object."""

    def __init__(self) -> None:
        self._log_id = secrets.token_hex(16)
        self._created = SystemClock().now()
        self._head = Head(0, genesis(self._log_id).hex())
        self._rows: list[Row] = []
        self._known = Walk(self._log_id)
        """Of the last walk that found nothing wrong."""
        self._fault: Verification | None = None
        """What the last walk found wrong."""
        self._salts = Salts()
        self._closed = False

    @property
    def log_id(self) -> str:
        return self._log_id

    @property
    def head(self) -> Head:
        return self._head

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        sealed = check_append(drafts, self._salts)
        self._refuse_if_closed()
        if expected != self._head.position:
            detail = f"an append after event {expected}, the log is at {self._head.position}"
            raise LogConflictError(detail, head=self._head.position, expected=expected)
        rows = link_all(sealed, self._head)
        if rows:
            self._rows += rows
            self._head = Head(rows[-1].position, rows[-1].hash.hex())
        return tuple(event_of(row) for row in rows)

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        self._refuse_if_closed()
        rows = (
            row
            for row in islice(self._rows, min(max(after, 0), len(self._rows)), None)
            if types is None or row.type in types
        )
        return [event_of(row) for row in islice(rows, limit)]

    async def at(self, positions: Sequence[int]) -> list[Event]:
        self._refuse_if_closed()
        return [event_of(self._rows[each - 1]) for each in positions if 0 < each <= len(self._rows)]

    async def of_command(self, command_id: str) -> list[Event]:
        self._refuse_if_closed()
        return [event_of(row) for row in self._rows if row.command_id == command_id]

    async def created(self) -> str:
        self._refuse_if_closed()
        return self._created

    async def rows(self, after: int, limit: int) -> list[tuple[Any, ...]]:
        self._refuse_if_closed()
        return [*self._rows[max(after, 0) : max(after, 0) + limit]]

    async def verify(self, *, full: bool = True, heads: Sequence[Head] = ()) -> Verification:
        self._refuse_if_closed()
        if not full and self._fault is not None:
            return self._fault
        walk, self._fault = Walk(self._log_id) if full else self._known.copy(), None
        if not walk.feed(map(as_read, self._rows[walk.position :])) or walk.head != self._head:
            self._fault = unsound(walk, walk.position + 1, walk.bad or "lost")
            return self._fault
        self._known = walk
        return sound(walk, [(each, self._hash_at(each.position)) for each in heads])

    def _hash_at(self, position: int) -> str | None:
        if position > len(self._rows):
            return None
        return self._rows[position - 1].hash.hex() if position > 0 else genesis(self._log_id).hex()

    async def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LogError("the log is closed")
