"""The log of a folder as an auditor reads it: without a service, without changing a byte."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from ...domain.events import Event
from ...errors import LogDamagedError, LogError, LogUnusableError
from ...ports import Head, Verification
from ..chain import event_of
from ..connection import Connection
from ..index import INDEX, Finder, IndexDatabase, settle
from ..inspection import check_identity, inspect, missing_log
from ..lock import FolderLock
from ..reader import PAGE_ROWS, Reader
from ..schema import NAME, READ_ERRORS, prepare_reader, read_only_uri

_NO_CHECKPOINT = "there is no head.checkpoint: events dropped at the end would go unnoticed"


async def verify_folder(folder: Path, heads: Sequence[Head] = ()) -> Verification:
    """The result of `log verify`. Damage is an answer (`ok` False); `first_bad` is None if no single event is at fault.

    heads: witnessed heads that the log must contain. Raises `LogHeldError` while a service runs, `LogUnusableError`
    without a log of this version.
    """
    try:
        with contextlib.closing(await FolderLock.acquire(folder, shared=True)):
            findings = await asyncio.to_thread(inspect, folder, thorough=True, heads=heads)
    except LogDamagedError as error:
        head = error.fields.get("head") or Head(0, "")
        events = error.fields.get("events", 0)
        return Verification(
            ok=False, events=events, head=head, first_bad=error.fields.get("first_bad"), detail=error.detail
        )
    unproven = not findings.witnessed and not heads
    return Verification(
        ok=True,
        events=findings.head.position,
        head=findings.head,
        detail=_NO_CHECKPOINT if unproven else None,
        clock_skew=findings.clock_skew,
        verified_from=1,
        unproven=unproven,
    )


async def events_of(folder: Path, after: int = 0, types: Sequence[str] | None = None) -> AsyncGenerator[Event, None]:
    """The events of a folder with position above `after`, as they are stored: the chain is not verified here, so
    that a damaged log can be read. Close the iterator (`aclosing`) if it is left early.

    Raises `LogHeldError`, `LogUnusableError`, and `LogDamagedError` if reading cannot continue.
    """
    lock = await FolderLock.acquire(folder, shared=True)
    try:
        if await asyncio.to_thread(missing_log, folder):
            raise LogUnusableError(f"there is no log in {folder}")
        await asyncio.to_thread(check_identity, folder / NAME)
        db = await Connection.open(lambda: _connection(folder))
        try:
            reader, last, size = Reader(db), after, PAGE_ROWS
            while True:
                try:
                    page = [event_of(row) for row in await reader.rows(last, size)]
                except (LogError, AttributeError, TypeError) as error:
                    if size == 1:
                        raise LogDamagedError(f"event {last + 1} cannot be read: {error}", first_bad=last + 1) from None
                    size = max(1, size // 2)  # those before the bad one can still be shown
                    continue
                for event in page:
                    last = event.position
                    if types is None or event.type in types:
                        yield event
                if not page:
                    return
        finally:
            await db.close()
    except READ_ERRORS as error:
        raise LogUnusableError(f"{folder / NAME} cannot be opened: {error}") from None
    finally:
        lock.close()


class FolderLog:
    """The log of a folder up to a head, for look-ups."""

    def __init__(self, log_id: str, head: Head, reader: Reader) -> None:
        self.log_id = log_id
        self.head = head
        self._reader = reader

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        return await self._reader.read(after, limit, types, self.head.position)

    async def at(self, positions: Sequence[int]) -> list[Event]:
        return await self._reader.at([each for each in positions if each <= self.head.position])


@asynccontextmanager
async def finder_in(folder: Path, head: Head, *, sound: bool) -> AsyncIterator[Finder]:
    """Look-ups in the log of a folder up to a head, by its index if that fits. sound: the whole log has been verified;
    else there is no index. Raises as `events_of`."""
    async with AsyncExitStack() as stack:
        stack.enter_context(contextlib.closing(await FolderLock.acquire(folder, shared=True)))
        if await asyncio.to_thread(missing_log, folder):
            raise LogUnusableError(f"there is no log in {folder}")
        db = await Connection.open(lambda: _connection(folder))
        stack.push_async_callback(db.close)
        reader = Reader(db)
        ((log_id,),) = await reader.of_meta("log_id")
        log = FolderLog(str(log_id), head, reader)
        if not sound:
            yield Finder.without_index(log)
            return
        index = stack.enter_context(contextlib.closing(IndexDatabase(folder / INDEX, read_only=True)))
        await settle(log, index)
        yield Finder(log, index)


def _connection(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(read_only_uri(folder / NAME), uri=True, isolation_level=None)
    prepare_reader(connection)
    return connection
