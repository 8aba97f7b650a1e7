"""The one writer of a log: appends in order, grouped where they wait, durable before they are answered.

An append is one multi-row INSERT in autocommit, so it is a transaction of its own that no cancelled await can leave
open. After the commit the head goes to `head.checkpoint`; then the callers are answered. After an I/O failure
nothing is tried again: what fsync could not write, a second fsync may report as written.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import aiosqlite

from ..domain.events import Draft, Event
from ..errors import DiskFullError, LogConflictError, LogError, SAEError, TooLargeError
from ..ports import Head
from .chain import Row, Sealed, event_of, link_all, seal
from .checkpoint import Checkpoint
from .schema import NAME, WAL_NAME, insert_statement

logger = logging.getLogger(__name__)

MAX_APPEND = 2048
"""Events of one append: the parameters of one INSERT are bounded (32,766 of them, 11 to an event)."""
GROUP_EVENTS = 512
GROUP_BYTES = 4 * 1024 * 1024
"""Bounds of the appends that are stored together."""
SYNC_EVENTS = 256
SYNC_SECONDS = 60.0
"""The checkpoint is made durable after so many events, or at the first append after so many seconds."""
WAL_PAGES = 1000
"""The WAL is folded into the database when it holds about so many pages of 4 KiB."""


class _Waiting(NamedTuple):
    sealed: list[Sealed]
    expected: int
    answer: asyncio.Future[tuple[Event, ...]]


def check_append(drafts: Sequence[Draft]) -> list[Sealed]:
    """The drafts with salt and digest.

    Raises `TooLargeError` for an event or an append beyond the limits, `ValueError` for what no log can hold.
    """
    if len(drafts) > MAX_APPEND:
        raise TooLargeError(f"{len(drafts)} events in one append; at most {MAX_APPEND}", limit=MAX_APPEND)
    return [seal(draft) for draft in drafts]


class Writer:
    """Appends behind `head` through one connection."""

    def __init__(
        self, db: aiosqlite.Connection, folder: Path, log_id: str, head: Head, checkpoint: Checkpoint | None
    ) -> None:
        """`checkpoint` None: it is made with the first append, which puts an accepted loss on record."""
        self.head = head
        self._db = db
        self._folder = folder
        self._log_id = log_id
        self._checkpoint = checkpoint
        self._queue: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._wal_pages = 0
        self._unsynced = 0
        self._synced_at = time.monotonic()
        self._stopped: str | None = None
        # Paths as text: they are looked at twice with every commit.
        self._paths = (os.fspath(folder / NAME), os.fspath(folder / WAL_NAME))
        self._files = self._fingerprint()

    async def append(self, drafts: Sequence[Draft], expected: int) -> tuple[Event, ...]:
        sealed = check_append(drafts)
        if self._stopped is not None:
            raise LogError(self._stopped)
        waiting = _Waiting(sealed, expected, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        # From here on it is stored, whatever becomes of the caller: a cancel reaches the answer alone.
        return await waiting.answer

    async def erase(self, position: int) -> None:
        """Overwrite a payload in the database (`secure_delete`) and empty the WAL, which still held it."""
        if self._stopped is not None:
            raise LogError(self._stopped)
        try:
            await self._db.execute_fetchall(
                "UPDATE events SET data = NULL, salt = NULL WHERE position = ?", (position,)
            )
            await self._db.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            self._stop([], f"the payload of event {position} could not be erased ({error})")
            raise LogError(self._stopped or "") from None
        self._files = self._fingerprint()

    async def drain(self) -> None:
        """Store what waits, take nothing more."""
        self._stopped = self._stopped or "the log is closed"
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._syncing is not None:
            await asyncio.wait([self._syncing])

    async def close(self) -> None:
        """Make the checkpoint durable and let go of it; after `drain` and after the database was closed."""
        if self._checkpoint is not None:
            try:
                await asyncio.to_thread(self._checkpoint.sync)
            finally:
                self._checkpoint.close()
                self._checkpoint = None

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while self._queue:
                batch, rows = self._take()
                if rows:
                    await self._store(batch, rows)
                else:
                    _answer(batch, rows)
        except BaseException as error:
            self._stop(batch, f"the writer of the log ended: {type(error).__name__}")
            raise
        finally:
            self._task = None

    def _take(self) -> tuple[list[_Waiting], list[Row]]:
        """The appends that are stored next, in one transaction, and their rows."""
        batch: list[_Waiting] = []
        rows: list[Row] = []
        size, head = 0, self.head
        while self._queue:
            waiting = self._queue[0]
            size += sum(sealed.size for sealed in waiting.sealed)
            if rows and (len(rows) + len(waiting.sealed) > GROUP_EVENTS or size > GROUP_BYTES):
                break
            self._queue.popleft()
            if waiting.expected != head.position:
                detail = f"an append behind event {waiting.expected}, the log is at {head.position}"
                _refuse([waiting], LogConflictError, detail, head=head.position, expected=waiting.expected)
                continue
            batch.append(waiting)
            if waiting.sealed:
                rows += link_all(waiting.sealed, head)
                head = Head(rows[-1].position, rows[-1].hash.hex())
        return batch, rows

    async def _store(self, batch: list[_Waiting], rows: list[Row]) -> None:
        if self._fingerprint() != self._files:
            # Only with SQLite's locks lost can another process write; its log and ours are two from here on.
            self._stop(batch, "another process wrote to events.db: the log takes no more events")
            return
        try:
            await self._db.execute_fetchall(insert_statement(len(rows)), list(itertools.chain.from_iterable(rows)))
        except sqlite3.Error as error:
            await self._fail(batch, error)
            return
        self._files = self._fingerprint()
        self.head = Head(rows[-1].position, rows[-1].hash.hex())
        failure = await self._witness(len(rows))
        # The events are durable, also where their witness is not: that stops the next append, not this one.
        _answer(batch, rows)
        if failure is not None:
            self._stop([], failure)
            return
        # A commit writes a leaf of the table, one of the index and what its rows fill.
        self._wal_pages += 3 + sum(len(row.data or b"") + 512 for row in rows) // 4096
        if self._wal_pages >= WAL_PAGES:
            await self._fold()

    async def _fold(self) -> None:
        """Move what the WAL holds into the database, so that the WAL begins anew."""
        self._wal_pages = 0
        try:
            await self._db.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL:  # full: it all stays in the WAL
                self._stop([], f"events.db could not be written ({error}): the log takes no more events")
        self._files = self._fingerprint()

    async def _fail(self, batch: list[_Waiting], error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code == sqlite3.SQLITE_FULL and await self._unchanged():
            self._files = self._fingerprint()
            _refuse(batch, DiskFullError, "no space for the event log; nothing was stored")
        elif code == sqlite3.SQLITE_CONSTRAINT:
            self._stop(batch, f"events.db refused the next position ({error}): another process wrote to it")
        else:
            self._stop(batch, f"events.db could not be written ({name}: {error}): the log takes no more events")

    async def _unchanged(self) -> bool:
        """No transaction is open and the last event is the one we know."""
        try:
            rows = await self._db.execute_fetchall("SELECT coalesce(max(position), 0) FROM events")
        except sqlite3.Error:
            return False
        return list(rows) == [(self.head.position,)] and not self._db.in_transaction

    async def _witness(self, events: int) -> str | None:
        """Record the head outside the log; what is wrong if that fails."""
        try:
            if self._checkpoint is None:
                self._checkpoint = await asyncio.to_thread(Checkpoint.create, self._folder, self._log_id, self.head)
            else:
                self._checkpoint.write(self.head)
        except OSError as error:
            return f"head.checkpoint could not be written ({error.strerror}): the log takes no more events"
        self._unsynced += events
        now = time.monotonic()
        if self._syncing is None and (self._unsynced >= SYNC_EVENTS or now - self._synced_at >= SYNC_SECONDS):
            self._unsynced, self._synced_at = 0, now
            self._syncing = asyncio.create_task(self._sync(self._checkpoint))
        return None

    async def _sync(self, checkpoint: Checkpoint) -> None:
        try:
            await asyncio.to_thread(checkpoint.sync)
        except OSError as error:
            self._stop([], f"head.checkpoint could not be synced ({error.strerror}): the log takes no more events")
        finally:
            self._syncing = None

    def _stop(self, batch: list[_Waiting], reason: str) -> None:
        """Fail-stop: refuse what is at hand, what waits and whatever comes."""
        logger.critical("%s", reason)
        self._stopped = reason
        _refuse([*batch, *self._queue], LogError, reason)
        self._queue.clear()

    def _fingerprint(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """What changes under us only if another process writes: inode and size of the database and its WAL.

        By path, but without opening: closing a descriptor of events.db would drop SQLite's own locks.
        """
        database, wal = self._paths
        return _identity(database), _identity(wal)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size


def _answer(batch: list[_Waiting], rows: list[Row]) -> None:
    at = 0
    for waiting in batch:
        end = at + len(waiting.sealed)
        if not waiting.answer.done():
            waiting.answer.set_result(tuple([event_of(row) for row in rows[at:end]]))
        at = end


def _refuse(batch: list[_Waiting], error: type[SAEError], detail: str, **fields: int) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error(detail, **fields))
