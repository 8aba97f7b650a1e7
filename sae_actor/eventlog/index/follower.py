"""Keeps the index up with its log. No append waits for it: it reads pages of the log, as any reader does."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from time import perf_counter

from ...domain.events import ERASED, Event, PayloadRedacted, payload_of
from ...errors import LogError
from .database import IndexDatabase
from .readable import Readable
from .tables import DAMAGE

logger = logging.getLogger(__name__)

PAGE = 500
REST_SECONDS = 0.25
"""Between its looks at a log that grows: events that gather meanwhile are entered together."""

MOST_WRONG = 3
"""Times that it is made again in one life of the process."""
MOST_BEHIND = 10_000
"""Events that an index which is only read may be behind: they are read from the log at each look-up."""


async def follow(log: Readable, index: IndexDatabase, grown: asyncio.Event) -> None:
    """Until it is cancelled, the log is closed, or there is no disk for the index. grown: set whenever the log grew, or
    the index is not trusted any more; one that is found to be wrong again and again is given up."""
    wrong = 0
    try:
        while index.usable and wrong <= MOST_WRONG:
            grown.clear()
            wrong += index.wrong
            await catch_up(log, index)
            await grown.wait()
            await asyncio.sleep(REST_SECONDS)
    except LogError as error:
        logger.info("the index ends with its log: %s", error.detail)


async def catch_up(log: Readable, index: IndexDatabase) -> None:
    """Check the index unless it is trusted, and bring it up to the log's head. What does not fit is made again."""
    try:
        if not index.trusted:
            await settle(log, index)
        while index.trusted and index.writable and (at := index.head.position) < log.head.position:
            since = perf_counter()
            page = await log.read(at, PAGE)
            await asyncio.to_thread(index.enter, log.log_id, page, await _erased(log, page))
            # Half of the time is for others.
            await asyncio.sleep(perf_counter() - since if len(page) == PAGE else 0)
    except DAMAGE as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            logger.warning("index.db is not kept up: %s", error)
            return
        await asyncio.to_thread(index.make_anew, str(error))


async def settle(log: Readable, index: IndexDatabase) -> None:
    """Trust the index if it is of this log, and its bytes are those that were written; else make it again."""
    if index.wrong:
        await asyncio.to_thread(index.make_anew, "it was wrong")
    elif not await fits(log, index):
        await asyncio.to_thread(index.make_anew, "it is not of this log")
    elif not await asyncio.to_thread(index.check):
        await asyncio.to_thread(index.make_anew, "it was damaged")
    elif not index.writable and log.head.position - index.head.position > MOST_BEHIND:
        await asyncio.to_thread(index.make_anew)
    elif index.writable and index.head.position:
        # A kill may have come between a PayloadRedacted and its deed: it is the last event then.
        for position in await _erased(log, await log.at([index.head.position])):
            await asyncio.to_thread(index.erase, position)
    index.trusted = index.usable


async def _erased(log: Readable, page: Sequence[Event]) -> list[int]:
    """The positions that these events name, as far as their payloads are gone."""
    named = {p.redacted_position for event in page if isinstance(p := payload_of(event), PayloadRedacted)}
    return [event.position for event in await log.at(sorted(named)) if bytes(event.data) == ERASED]


async def fits(log: Readable, index: IndexDatabase) -> bool:
    """Whether the log has the event at which the index ends; an empty one fits every log."""
    head = index.head
    if head.position == 0:
        return True
    if index.log_id != log.log_id or head.position > log.head.position:
        return False
    found = await log.read(head.position - 1, 1)
    return [event.hash for event in found] == [head.hash]
