"""A SQLite connection and the thread it lives on: jobs run there one after the other, in the order they came."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

Job: TypeAlias = Callable[[sqlite3.Connection], T]
Done: TypeAlias = Callable[[Any, BaseException | None], None]
"""done(result, None) or done(None, error), on the event loop."""


class _Order(NamedTuple):
    job: Job[Any]
    done: Done
    closes: bool = False


class Connection:
    """`await Connection.open(connector)`, later `await connection.close()`.

    A job is never cut off: whoever waits for it may go, it is done all the same. The thread ends with the
    connection, and is no reason for a process to stay.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Order | None] = SimpleQueue()
        self._last: list[_Order | None] = []
        """The close that came while a long job ran, and the end; they are done behind that one."""
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
        self._jobs.put(_Order(job, done))

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
            self._closing = self._loop.create_future()
            job = _close_as_it_is if as_it_is else sqlite3.Connection.close
            self._jobs.put(_Order(job, functools.partial(_settle, self._closing), closes=True))
            self._end()
        await asyncio.shield(self._closing)

    def give_way(self, connection: sqlite3.Connection) -> None:
        """Called by a long job, on the thread, where it can be interrupted: do the jobs that came meanwhile.

        Raises `sqlite3.ProgrammingError` where the connection is to be closed: the long job is to end.
        """
        for _ in range(self._jobs.qsize()):  # not those that come meanwhile, or it would never get on
            order = self._jobs.get()
            if order is None or order.closes:
                self._last.append(order)
            else:
                self._do(order, connection)
        if self._last:
            raise sqlite3.ProgrammingError("the connection is closed")

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
            while (order := self._last.pop(0) if self._last else self._jobs.get()) is not None:
                self._do(order, connection)
                order = None  # what waits for the next one must not keep the rows of this one

    def _do(self, order: _Order, connection: sqlite3.Connection) -> None:
        try:
            result = order.job(connection)
        except BaseException as error:
            self._tell(order.done, None, error)
        else:
            self._tell(order.done, result, None)

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
