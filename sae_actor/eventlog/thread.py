"""A SQLite connection and the thread it lives on: jobs run there one after the other, in the order they came."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Job: TypeAlias = Callable[[sqlite3.Connection], T]
Done: TypeAlias = Callable[[Any, BaseException | None], None]
"""done(result, None) or done(None, error), on the event loop."""


class Connection:
    """`await Connection.open(connector)`, later `await connection.close()`.

    A job is never cut off: whoever waits for it may go, it is done all the same. The thread ends with the
    connection, and is no reason for a process to stay.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Job[Any], Done] | None] = SimpleQueue()
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, connector: Callable[[], sqlite3.Connection]) -> Connection:
        """Connect on the new thread. Raises what `connector` raises."""
        connection = cls()
        opened: asyncio.Future[None] = connection._loop.create_future()
        threading.Thread(
            target=connection._live, args=(connector, functools.partial(_settle, opened)), name="events.db", daemon=True
        ).start()
        try:
            await opened
        except asyncio.CancelledError:
            connection._end()  # once it is open
            raise
        return connection

    def submit(self, job: Job[Any], done: Done) -> None:
        """Queue a job; `done` is called on the loop. Raises `sqlite3.ProgrammingError` once it is closing."""
        if self._closing is not None:
            raise sqlite3.ProgrammingError("the connection is closed")
        self._jobs.put((job, done))

    async def run(self, job: Job[T]) -> T:
        """Run a job and wait for it. Raises what it raises."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(job, functools.partial(_settle, future))
        return await future

    async def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        return await self.run(lambda connection: connection.execute(statement, parameters).fetchall())

    async def close(self, *, as_it_is: bool = False) -> None:
        """Close behind the jobs that are queued; harmless when repeated.

        as_it_is: leave the write-ahead log where it is, neither folded nor synced. After a sync that failed another
        one may report as written what never was.
        """
        if self._closing is None:
            closing = self._loop.create_future()
            self.submit(_close_as_it_is if as_it_is else sqlite3.Connection.close, functools.partial(_settle, closing))
            self._closing = closing
            self._end()
        await asyncio.shield(self._closing)

    def _end(self) -> None:
        self._jobs.put(None)

    def _live(self, connector: Callable[[], sqlite3.Connection], opened: Done) -> None:
        """The life of the thread."""
        try:
            connection = connector()
        except BaseException as error:
            self._tell(opened, None, error)
            return
        with contextlib.closing(connection):
            self._tell(opened, None, None)
            while (order := self._jobs.get()) is not None:
                job, done = order
                try:
                    result = job(connection)
                except BaseException as error:
                    self._tell(done, None, error)
                else:
                    self._tell(done, result, None)
                # A job that waits here must not keep the last one's rows.
                order = job = done = result = None  # type: ignore[assignment]

    def _tell(self, done: Done, result: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no one is left to be told
            self._loop.call_soon_threadsafe(done, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # whoever waited has gone
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _close_as_it_is(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA synchronous = OFF")
    # SQLite folds the WAL when the last connection closes, unless it is interrupted; a WAL not folded stays.
    connection.interrupt()
    connection.close()
