"""The event log on disk: a data folder held by one process, verified when it is opened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..domain.events import Draft, Event, PayloadRedacted
from ..domain.messages import TakenOver
from ..errors import LogDamagedError, LogError, LogHeldError, LogUnusableError, ReadOnlyError
from ..ports import Head, Verification
from .backup import copy_log
from .chain import Walk, as_read, genesis, sound, unsound
from .checkpoint import Checkpoint
from .connection import Connection
from .inspection import Findings, inspect, missing_log
from .lock import FolderLock, make_folder
from .new_database import NewDatabase
from .origin import forget_origin, log_file, read_origin
from .reader import PAGE_ROWS, Reader
from .schema import NAME, prepare_reader, prepare_writer, read_only_uri
from .writer import Writer

logger = logging.getLogger(__name__)


class SqliteLog:
    """`EventLog` in a data folder: `await SqliteLog.open(folder)`, later `await log.close()`."""

    def __init__(
        self,
        db: Connection,
        folder: Path,
        lock: FolderLock,
        findings: Findings,
        *,
        read_only: bool,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.read_only = read_only
        self.truncation: Head | None = findings.truncation
        """The head on record of a log that turned out shorter and was accepted so. The caller's first append is
        the LogTruncated that names it; the checkpoint is renewed with that append, not before."""
        self._db = db
        self._folder = folder
        self._lock = lock
        self._log_id = findings.log_id
        self._reader = Reader(db)
        self._known = findings.walk or Walk(findings.log_id)
        """Of the last walk that found nothing wrong; the first one opened the log."""
        self._fault: Verification | None = None
        """What the last walk found wrong."""
        self._writer = Writer(db, folder, findings.log_id, findings.head, checkpoint)
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        read_only: bool = False,
        accept_truncation: int | None = None,
    ) -> SqliteLog:
        """Open the log of a data folder, making both where they are missing; the whole chain is verified first.

        read_only: change nothing, make no file; several may read while there is no writer.
        accept_truncation: continue although events are lost, if the log now ends exactly at this position. Refused
        without a log, or without a proven loss.

        Raises `LogHeldError`, `LogDamagedError` and `LogUnusableError`; then nothing in the log was modified.
        """
        if accept_truncation is not None and await asyncio.to_thread(missing_log, folder):
            raise LogUnusableError(f"--accept-truncation {accept_truncation}: there is no log in {folder}")
        if not read_only:
            await asyncio.to_thread(make_folder, folder)
        lock = await FolderLock.acquire(folder, shared=read_only)
        opening = asyncio.ensure_future(cls._open(folder, lock, read_only, accept_truncation))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread that walks the chain cannot be stopped: what it opens is closed when it is done.
            opening.add_done_callback(_close_unwanted)
            raise

    @classmethod
    async def _open(cls, folder: Path, lock: FolderLock, read_only: bool, accept_truncation: int | None) -> SqliteLog:
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(lock.close)
            try:
                findings = await asyncio.to_thread(_examine, folder, read_only, accept_truncation)
                db = await _connect(folder, findings, read_only)
                undo.push_async_callback(db.close)
                checkpoint = None
                if not read_only and findings.truncation is None:
                    checkpoint = await asyncio.to_thread(Checkpoint.create, folder, findings.log_id, findings.head)
            except OSError as error:
                raise LogUnusableError(f"the log in {folder} cannot be opened: {error.strerror}") from None
            except sqlite3.Error as error:
                raise LogUnusableError(f"the log in {folder} cannot be opened: {error}") from None
            undo.pop_all()
        log = cls(db, folder, lock, findings, read_only=read_only, checkpoint=checkpoint)
        try:
            if not read_only:
                await log._finish_redactions(findings.unfinished_redactions)
        except BaseException:
            await log.close()
            raise
        return log

    async def _finish_redactions(self, positions: Sequence[int]) -> None:
        """A kill came between a PayloadRedacted and its deed: it is the last event then."""
        last = await self.read(self.head.position - 1)
        for event in last:
            payload = event.payload()
            if isinstance(payload, PayloadRedacted) and payload.redacted_position in positions:
                await self.erase(payload.redacted_position)

    @property
    def log_id(self) -> str:
        return self._log_id

    @property
    def head(self) -> Head:
        return self._writer.head

    async def taken_over(self) -> TakenOver:
        """What a start has to know of the log, besides its events."""
        file, origin = await asyncio.to_thread(lambda: (log_file(self._folder), read_origin(self._folder)))
        head = {"log_id": self._log_id, "head_hash": self.head.hash}
        return TakenOver(**head, log_file=file, origin=origin, branch_id=secrets.token_hex(16))

    async def settle(self) -> None:
        """The first start after a restore or an import is on record."""
        await asyncio.to_thread(forget_origin, self._folder)

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        """See the port. Waiting appends that follow one another share a transaction.

        Raises `TooLargeError` beyond the size limits and `ReadOnlyError`; then nothing was stored.
        """
        if self.read_only:
            raise ReadOnlyError("the log was opened for reading only")
        return await self._writer.append(drafts, expected)

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        return await self._reader.read(after, limit, types, self.head.position)

    async def at(self, positions: Sequence[int]) -> list[Event]:
        return await self._reader.at([each for each in positions if each <= self.head.position])

    async def of_command(self, command_id: str) -> list[Event]:
        return await self._reader.of_command(command_id)

    async def created(self) -> str:
        ((created,),) = await self._reader.of_meta("created")
        return str(created)

    async def rows(self, after: int, limit: int) -> list[tuple[Any, ...]]:
        """See the port; at most `PAGE_ROWS` of them."""
        return await self._reader.rows(after, min(limit, PAGE_ROWS))

    async def verify(self, *, full: bool = True, heads: Sequence[Head] = ()) -> Verification:
        """See the port. In pages, between which appends go on."""
        if not full and self._fault is not None:
            return self._fault
        head, walk = self.head, Walk(self._log_id) if full else self._known.copy()
        self._fault = await self._faulty(walk, head)
        if self._fault is not None:
            return self._fault
        self._known = max(self._known, walk, key=lambda each: each.position)
        return sound(walk, [(each, await self._hash_at(each.position, head)) for each in heads])

    async def _faulty(self, walk: Walk, head: Head) -> Verification | None:
        """Continue a walk to the head; what is wrong on the way, if anything is."""
        page = PAGE_ROWS
        while walk.position < head.position and walk.bad is None:
            try:
                rows = await self._reader.rows(walk.position, min(page, head.position - walk.position))
            except LogError:
                if self._closing is not None:
                    raise
                if page == 1:
                    return unsound(walk, walk.position + 1, "the row cannot be read")
                page = max(1, page // 2)  # the rows before the one that cannot be read are still to be judged
                continue
            if not rows:
                return unsound(walk, walk.position + 1, f"the events up to {head.position} are missing")
            await asyncio.to_thread(walk.feed, map(as_read, rows))
        if walk.bad is None and walk.head != head:
            return unsound(walk, walk.position, "the last event is not the one that was written")
        fault = walk.fault()
        return None if fault is None else unsound(walk, *fault)

    async def _hash_at(self, position: int, head: Head) -> str | None:
        if position > head.position:
            return None
        found = await self.read(position - 1, 1)
        return found[0].hash if found and position > 0 else genesis(self._log_id).hex()

    async def size(self) -> int:
        """Bytes of the log, and of a copy of it."""
        ((pages,),), ((size,),) = await self._db.fetch("PRAGMA page_count"), await self._db.fetch("PRAGMA page_size")
        return int(pages) * int(size)

    async def backup(self, to: Path) -> Head:
        """Copy the log as it is now to another folder while appends go on; the head of the copy.

        The copy is a data folder like this one, its chain verified as it lies there. Appends made meanwhile are in it.
        Raises what `copy_log` does.
        """
        return await copy_log(self._db, self._log_id, to)

    async def erase(self, position: int) -> None:
        """Overwrite the payload that the last event, a PayloadRedacted, names; final, and the chain still verifies.

        `redaction.redact` is the way to it: it knows which payloads the state does not rest on.
        """
        if self.read_only:
            raise ReadOnlyError("the log was opened for reading only")
        await self._writer.erase(position)

    async def close(self) -> None:
        """Store what waits, fold the WAL into the database, release the folder. Harmless when repeated.

        After a fault the files stay as they are, for the next start to judge.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._writer.drain()
            await self._db.close(as_it_is=self._writer.failed)
            await self._writer.close()
        except (sqlite3.Error, OSError) as error:
            raise LogError(f"the log could not be closed cleanly: {error}") from None
        finally:
            self._lock.close()


def _examine(folder: Path, read_only: bool, accept_truncation: int | None) -> Findings:
    """Everything that can be refused, before the database is opened for writing."""
    if read_only:
        findings = inspect(folder, accept_truncation=accept_truncation)
    else:
        for path in (folder, folder / NAME):
            if path.exists() and not os.access(path, os.W_OK):
                raise LogUnusableError(f"{path} cannot be written; --read-only serves it as it is")
        if missing_log(folder):
            log_id = secrets.token_hex(16)
            with contextlib.closing(NewDatabase(folder, log_id)) as database:
                database.publish()
            return Findings(log_id=log_id, head=Head(0, genesis(log_id).hex()), witnessed=True)
        try:
            findings = inspect(folder, accept_truncation=accept_truncation)
        except LogDamagedError as error:
            # A writer checks that first.
            raise LogDamagedError(f"{error.detail}. Nothing was changed", **error.fields) from None
        if findings.unknown is not None:
            name, schema, position = findings.unknown
            raise LogUnusableError(
                f"event {position} is a {name} of schema {schema}, which this version does not know; "
                f"use a newer sae-actor, or --read-only"
            )
    if not findings.witnessed:
        logger.warning("%s has no head.checkpoint: events lost at its end would go unnoticed", folder)
    return findings


async def _connect(folder: Path, findings: Findings, read_only: bool) -> Connection:
    def connector() -> sqlite3.Connection:
        # Runs on the connection's thread, where all of its life is spent.
        path = folder / NAME
        uri = read_only_uri(path) if read_only else f"{path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None, cached_statements=256)
        try:
            if read_only:
                prepare_reader(connection)
            elif (setting := prepare_writer(connection)) is not None:
                raise LogUnusableError(f"SQLite did not take the setting {setting} for {path}")
            row = connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
            if row is not None and Head(row[0], row[1].hex()) != findings.head:
                raise LogUnusableError(f"{path} changed while it was being opened")
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        return await Connection.open(connector)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise LogHeldError(f"another program has {folder / NAME} open") from None
        raise LogUnusableError(f"{folder / NAME} cannot be opened: {error}") from None


def _close_unwanted(opening: asyncio.Future[SqliteLog]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        closing = asyncio.ensure_future(opening.result().close())
        _unwanted.add(closing)
        closing.add_done_callback(_unwanted.discard)


_unwanted: set[asyncio.Future[None]] = set()
"""Logs being closed whose opener was cancelled."""
