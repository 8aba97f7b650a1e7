"""The event log in memory: the twin of `SqliteLog`, with the same chain."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import islice

from sae_actor.domain.events import Draft, Event
from sae_actor.errors import LogConflictError, LogError
from sae_actor.eventlog.chain import Row, Salts, Walk, as_read, event_of, genesis, link_all
from sae_actor.eventlog.writer import check_append
from sae_actor.ports import Head, Verification


class MemoryLog:
    """`EventLog` without a disk: "durable" means that it lives as long as this object."""

    def __init__(self) -> None:
        self._log_id = secrets.token_hex(16)
        self._head = Head(0, genesis(self._log_id).hex())
        self._rows: list[Row] = []
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

    async def of_command(self, command_id: str) -> list[Event]:
        self._refuse_if_closed()
        return [event_of(row) for row in self._rows if row.command_id == command_id]

    async def verify(self) -> Verification:
        self._refuse_if_closed()
        walk = Walk(self._log_id)
        if walk.feed(map(as_read, self._rows)) and walk.head == self._head:
            return Verification(ok=True, events=walk.position, head=walk.head, clock_skew=tuple(walk.skewed))
        return Verification(
            ok=False, events=walk.position, head=walk.head, first_bad=walk.position + 1, detail=walk.bad or "lost"
        )

    async def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LogError("the log is closed")
