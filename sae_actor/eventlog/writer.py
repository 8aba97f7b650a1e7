"""The one writer of a log: appends in order, grouped when they wait, durable before they are answered.

An append is one multi-row INSERT in autocommit, so it is a transaction of its own that no cancelled await can leave
open. After the commit the head goes to `head.checkpoint`; then the callers are answered. The loop decides what is
stored next and seals it, the connection's thread stores it: one trip there and back for each transaction. After an
I/O failure nothing is tried again: a second fsync may report as written what the first could not write.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..domain.events import Draft, Event
from ..errors import DiskFullError, LogConflictError, LogError, SAEError, TooLargeError
from ..ports import Head
from .chain import Row, Salts, Sealed, event_of, link_all, seal
from .checkpoint import Checkpoint
from .connection import Connection
from .schema import NAME, WAL_NAME, insert_statement

logger = logging.getLogger(__name__)

MAX_APPEND = 2048
"""Events of one append: the parameters of one INSERT are bounded (32,766 of them, 11 to an event)."""
GROUP_EVENTS = 512
GROUP_BYTES = 4 * 1024 * 1024
"""Bounds of the appends that are stored together."""
SYNC_EVENTS = 256
SYNC_SECONDS = 60.0
"""The checkpoint is synced after this many events, and this many seconds after the first unsynced one."""
WAL_PAGES = 1000
"""The WAL is folded into the database at about this many pages of 4 KiB."""


class _Waiting(NamedTuple):
    sealed: list[Sealed]
    size: int
    expected: int
    answer: asyncio.Future[tuple[Event, ...]]


class _Batch:
    """The contents of one transaction, its waiters, and appends that cannot follow."""

    def __init__(self, head: Head) -> None:
        self.head = head
        """Of the log, when it is stored."""
        self.waiting: list[_Waiting] = []
        self.sealed: list[Sealed] = []
        self.conflicts: list[tuple[_Waiting, int]] = []
        """With the position that the log is at by then."""
        self.position = head.position
        self.rows: list[Row] = []
        self.failure: _Failure | None = None
        self.unwitnessed: str | None = None
        """The error of the checkpoint, if the events were stored."""


class _Failure(NamedTuple):
    """Why a batch was not stored."""

    error: Exception | None
    """None: another process wrote to the files."""
    unchanged: bool = False
    """No transaction is open, and the last event is still the one we know."""


def check_append(drafts: Sequence[Draft], salts: Salts) -> list[Sealed]:
    """The drafts with salt and digest.

    Raises `TooLargeError` for an event or an append beyond the limits, `ValueError` for what no log can hold.
    """
    if len(drafts) > MAX_APPEND:
        raise TooLargeError(f"{len(drafts)} events in one append; at most {MAX_APPEND}", limit=MAX_APPEND)
    return [seal(draft, salts.take()) for draft in drafts]


class Writer:
    """Appends after `head` through one connection."""

    def __init__(self, db: Connection, folder: Path, log_id: str, head: Head, checkpoint: Checkpoint | None) -> None:
        """`checkpoint` None: it is made with the first append, which records an accepted loss."""
        self.head = head
        self.failed = False
        """After a fault: what is on disk is to be left as it is."""
        self._db = db
        self._folder = folder
        self._log_id = log_id
        self._checkpoint = checkpoint
        self._loop = asyncio.get_running_loop()
        self._salts = Salts()
        self._queue: deque[_Waiting] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._syncing: asyncio.Task[None] | None = None
        self._unsynced = 0
        self._sync_later: asyncio.TimerHandle | None = None
        self._stopped: str | None = None
        self._paths = (os.fspath(folder / NAME), os.fspath(folder / WAL_NAME))
        # From here on read and written by the connection's thread alone.
        self._files = self._fingerprint()
        _, wal = self._files
        # What lives before this one were killed with: many short ones must not let it grow without end.
        self._wal_pages = 0 if wal is None else wal[1] // 4096

    def append(self, drafts: Sequence[Draft], expected: int) -> asyncio.Future[tuple[Event, ...]]:
        """Queue an append. From here on it is stored, whatever becomes of the caller: a cancel reaches the answer
        alone."""
        sealed = check_append(drafts, self._salts)
        if self._stopped is not None:
            raise LogError(self._stopped)
        answer: asyncio.Future[tuple[Event, ...]] = self._loop.create_future()
        self._queue.append(_Waiting(sealed, sum([each.size for each in sealed]), expected, answer))
        if self._idle.is_set():
            self._idle.clear()
            # The thread runs when the loop waits: appends of one step are stored together.
            self._db.submit(self._store, self._stored)
        return answer

    async def erase(self, position: int) -> None:
        """Overwrite a payload in the database (`secure_delete`) and empty the WAL, which still held it."""
        if self._stopped is not None:
            raise LogError(self._stopped)
        try:
            await self._db.run(lambda connection: self._erase(connection, position))
        except sqlite3.Error as error:
            self._stop([], f"the payload of event {position} could not be erased ({error})")
            raise LogError(self._stopped or "") from None

    async def drain(self) -> None:
        """Store what waits, take nothing more."""
        self._stopped = self._stopped or "the log is closed"
        await self._idle.wait()
        if self._sync_later is not None:
            self._sync_later.cancel()
        if self._syncing is not None:
            await asyncio.wait([self._syncing])

    async def close(self) -> None:
        """Make the checkpoint durable and let go of it; after `drain` and after the database was closed."""
        if self._checkpoint is not None:
            try:
                if not self.failed:
                    await asyncio.to_thread(self._checkpoint.sync)
            finally:
                self._checkpoint.close()
                self._checkpoint = None

    # — on the loop —

    def _stored(self, batch: _Batch | None, _: object) -> None:
        """The thread is done with a transaction: answer its waiters, and hand over the next one."""
        assert batch is not None  # `_store` never raises
        self._answer(batch)
        if self.failed:
            _refuse(self._queue, LogError, self._stopped or "")
            self._queue.clear()
        if self._queue:
            self._db.submit(self._store, self._stored)
        else:
            self._idle.set()

    def _answer(self, batch: _Batch) -> None:
        for waiting, position in batch.conflicts:
            detail = f"an append after event {waiting.expected}, the log is at {position}"
            _refuse([waiting], LogConflictError, detail, head=position, expected=waiting.expected)
        if batch.failure is not None:
            self._fail(batch.waiting, batch.failure)
            return
        if batch.rows:
            self.head = batch.head
        # The events are durable even if their checkpoint is not: that stops the next append, not this one.
        _give_out(batch)
        if batch.unwitnessed is not None:
            self._stop([], batch.unwitnessed)
        elif batch.rows:
            self._look_after(batch.rows)

    def _look_after(self, rows: list[Row]) -> None:
        """Sync the checkpoint and fold the WAL if they are due."""
        self._unsynced += len(rows)
        self._plan_sync()
        # A commit writes a leaf of the table, one of the index and what its rows fill.
        self._wal_pages += 3 + sum([len(row.data or b"") + 512 for row in rows]) // 4096
        if self._wal_pages >= WAL_PAGES:
            self._wal_pages = 0
            self._db.submit(self._fold, self._folded)  # the next transaction queues after it

    def _plan_sync(self) -> None:
        if self._unsynced >= SYNC_EVENTS:
            self._begin_sync()
        elif self._unsynced > 0 and self._sync_later is None:
            self._sync_later = self._loop.call_later(SYNC_SECONDS, self._begin_sync)

    def _begin_sync(self) -> None:
        if self._sync_later is not None:
            self._sync_later.cancel()
            self._sync_later = None
        if self._syncing is None and not self.failed:
            self._unsynced = 0
            self._syncing = asyncio.ensure_future(self._sync())

    async def _sync(self) -> None:
        assert self._checkpoint is not None
        try:
            await asyncio.to_thread(self._checkpoint.sync)
        except OSError as error:
            self._stop([], f"head.checkpoint could not be synced ({error.strerror}): the log takes no more events")
        finally:
            self._syncing = None
        if self._stopped is None:
            self._plan_sync()  # for what came meanwhile

    def _folded(self, _: None, error: BaseException | None) -> None:
        # Full: it all stays in the WAL.
        if error is not None and getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL:
            self._stop([], f"events.db could not be written ({error}): the log takes no more events")

    def _fail(self, waiting: list[_Waiting], failure: _Failure) -> None:
        error = failure.error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if error is None:
            # Only with SQLite's locks lost can another process write; its log and ours are two from here on.
            self._stop(waiting, "another process wrote to events.db: the log takes no more events")
        elif not isinstance(error, sqlite3.Error):
            self._stop(waiting, f"the writer of the log ended: {name}")
        elif code == sqlite3.SQLITE_FULL and failure.unchanged:
            _refuse(waiting, DiskFullError, "no space for the event log; make space and restart the service")
        elif code == sqlite3.SQLITE_CONSTRAINT:
            self._stop(waiting, f"events.db refused the next position ({error}): another process wrote to it")
        else:
            self._stop(waiting, f"events.db could not be written ({name}: {error}): the log takes no more events")

    def _stop(self, waiting: list[_Waiting], reason: str) -> None:
        """Fail-stop: refuse what is at hand and whatever comes; what waits is refused by `_stored`."""
        logger.critical("%s", reason)
        self.failed = True
        self._stopped = reason
        _refuse(waiting, LogError, reason)

    # — on the connection's thread —

    def _store(self, connection: sqlite3.Connection) -> _Batch:
        """One transaction and its witness. What fails is in the batch; nothing is raised."""
        batch = self._take()
        if batch.sealed:
            try:
                if self._fingerprint() == self._files:
                    self._insert(connection, batch)
                else:
                    batch.failure = _Failure(None)
            except Exception as error:
                batch.failure = _Failure(error, self._unchanged(connection))
                self._files = self._fingerprint()
        return batch

    def _insert(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        rows = link_all(batch.sealed, self.head)
        connection.execute(insert_statement(len(rows)), list(itertools.chain.from_iterable(rows)))
        batch.rows = rows
        # A commit writes to the WAL alone.
        self._files = (self._files[0], _identity(self._paths[1]))
        batch.head = head = Head(rows[-1].position, rows[-1].hash.hex())
        try:
            if self._checkpoint is None:
                self._checkpoint = Checkpoint.create(self._folder, self._log_id, head)
            else:
                self._checkpoint.write(head)
        except OSError as error:
            batch.unwitnessed = f"head.checkpoint could not be written ({error.strerror}): the log takes no more events"

    def _take(self) -> _Batch:
        """The appends to store next. The loop stays at `head` until it knows their outcome."""
        batch = _Batch(self.head)
        size, queue = 0, self._queue
        while queue:
            waiting = queue[0]
            size += waiting.size
            if batch.sealed and (len(batch.sealed) + len(waiting.sealed) > GROUP_EVENTS or size > GROUP_BYTES):
                break
            queue.popleft()
            if waiting.expected != batch.position:
                batch.conflicts.append((waiting, batch.position))
                continue
            batch.waiting.append(waiting)
            batch.sealed += waiting.sealed
            batch.position += len(waiting.sealed)
        return batch

    def _unchanged(self, connection: sqlite3.Connection) -> bool:
        """No transaction is open and the last event is the one we know."""
        try:
            (last,) = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
        except sqlite3.Error:
            return False
        return bool(last == self.head.position) and not connection.in_transaction

    def _fold(self, connection: sqlite3.Connection) -> None:
        """Move what the WAL holds into the database, so that the WAL begins anew."""
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._files = self._fingerprint()

    def _erase(self, connection: sqlite3.Connection, position: int) -> None:
        try:
            connection.execute("UPDATE events SET data = NULL, salt = NULL WHERE position = ?", (position,))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._files = self._fingerprint()

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


def _give_out(batch: _Batch) -> None:
    at = 0
    for waiting in batch.waiting:
        end = at + len(waiting.sealed)
        if not waiting.answer.done():
            waiting.answer.set_result(tuple([event_of(row) for row in batch.rows[at:end]]))
        at = end


def _refuse(batch: Iterable[_Waiting], error: type[SAEError], detail: str, **fields: int) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error(detail, **fields))
