"""Pages of a log through its one connection, read so that an append waits for at most one page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..domain.events import Event
from ..errors import LogError
from .chain import event_of
from .connection import Connection
from .schema import COLUMNS, READ_ERRORS

PAGE_ROWS = 500
"""Rows that one trip to the connection's thread looks at."""


class Reader:
    """Reads in trips of at most `PAGE_ROWS` rows; one trip at a time is queued before an append."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._turn = asyncio.Semaphore(1)

    async def read(self, after: int, limit: int, types: Sequence[str] | None, head: int) -> list[Event]:
        """At most `limit` events in (after, head], of these types where given."""
        events: list[Event] = []
        at = max(after, 0)
        while at < head and len(events) < limit:
            # A filter looks at a window of positions per trip, however few of them match.
            end = min(at + (PAGE_ROWS if types is not None else min(limit - len(events), PAGE_ROWS)), head)
            query = f"SELECT {COLUMNS} FROM events WHERE position > ? AND position <= ?"
            parameters: list[Any] = [at, end]
            if types is not None:
                query += f" AND type IN ({', '.join('?' * len(types))})"
                parameters += types
            rows = await self._trip(f"{query} ORDER BY position LIMIT ?", (*parameters, limit - len(events)))
            events += [event_of(row) for row in rows]
            at = end
        return events

    async def at(self, positions: Sequence[int]) -> list[Event]:
        events: list[Event] = []
        for first in range(0, len(positions), PAGE_ROWS):
            some = positions[first : first + PAGE_ROWS]
            query = f"SELECT {COLUMNS} FROM events WHERE position IN ({', '.join('?' * len(some))}) ORDER BY position"
            events += [event_of(row) for row in await self._trip(query, some)]
        return events

    async def of_command(self, command_id: str) -> list[Event]:
        query = f"SELECT {COLUMNS} FROM events WHERE command_id = ? ORDER BY position"
        return [event_of(row) for row in await self._trip(query, (command_id,))]

    async def rows(self, after: int, limit: int) -> list[tuple[Any, ...]]:
        """Whole rows with position above `after`, unjudged; `limit` up to `PAGE_ROWS`."""
        query = f"SELECT {COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?"
        return await self._trip(query, (after, limit))

    async def of_meta(self, column: str) -> list[tuple[Any, ...]]:
        return await self._trip(f"SELECT {column} FROM meta", ())

    async def _trip(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        await self._turn.acquire()
        # A cancelled reader's page is read all the same; the next one waits for it, or a storm of readers that
        # come and go would fill the thread's queue before an append.
        trip = asyncio.ensure_future(self._fetch(query, parameters))
        trip.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(trip)

    async def _fetch(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return await self._db.fetch(query, parameters)
        except READ_ERRORS as error:
            raise LogError(f"the log cannot be read: {error}") from None
