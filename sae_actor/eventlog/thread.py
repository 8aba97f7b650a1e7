"""The log's connection: aiosqlite's, and whole jobs on its thread, one after the other, in the order they came.

Three things are added to it. A job of several statements is one trip to the thread and back, not one for each. A long
job can let others pass. And a connection can be closed with its files left as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import aiosqlite

T = TypeVar("T")

Job: TypeAlias = Callable[[sqlite3.Connection], T]
Done: TypeAlias = Callable[[Any, BaseException | None], None]
"""done(result, None) or done(None, error), on the event loop."""


class Connection(aiosqlite.Connection):
    """`await Connection.open(connector)`, later `await connection.close()`.

    A job is never cut off: whoever waits for it may go, it is done all the same. The thread ends with the
    connection, and is no reason for a process to stay.
    """

    _closing: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, connector: Callable[[], sqlite3.Connection]) -> Connection:
        """Connect on the new thread. Raises what `connector` raises."""
        connection = cls(connector, iter_chunk_size=64)
        connection._thread.daemon = True
        connection._thread.name = "events.db"
        try:
            await connection
        except BaseException:
            # It was told to end, and tells the loop when it does: not one that is closed by then.
            await asyncio.to_thread(connection._thread.join)
            raise
        return connection

    def submit(self, job: Job[Any], done: Done) -> None:
        """Queue a job; `done` is called on the loop. Raises `sqlite3.ProgrammingError` once it is closing."""

        def told(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            done(None if error is not None else future.result(), error)

        self._queue(job).add_done_callback(told)

    async def run(self, job: Job[T]) -> T:
        """Run a job and wait for it. Raises what it raises."""
        result: T = await self._queue(job)
        return result

    def _queue(self, job: Job[Any]) -> asyncio.Future[Any]:
        if self._closing is not None:
            raise sqlite3.ProgrammingError("the connection is closed")
        return self._queue_last(job)

    def _queue_last(self, job: Job[Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((future, lambda: job(self._conn)))
        return future

    async def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        return await self.run(lambda connection: connection.execute(statement, parameters).fetchall())

    async def close(self, *, as_it_is: bool = False) -> None:
        """Close behind the jobs that are queued; harmless when repeated.

        as_it_is: leave the write-ahead log where it is, neither folded nor synced. After a sync that failed another
        one may report as written what never was.
        """
        if self._closing is None:
            # Known before anything is queued for it: a long job that gives way does not do what ends the connection.
            self._closing = asyncio.ensure_future(self._end(as_it_is))
        await asyncio.shield(self._closing)

    async def _end(self, as_it_is: bool) -> None:
        try:
            if as_it_is:
                await self._queue_last(_close_as_it_is)
        finally:
            await super().close()

    def give_way(self) -> None:
        """Called by a long job, on the thread, where it can be interrupted: do the jobs that came meanwhile.

        Raises `sqlite3.ProgrammingError` where the connection is to be closed: the long job is to end.
        """
        waiting = self._tx.qsize()  # not those that come meanwhile, or it would never get on
        if self._closing is not None:
            raise sqlite3.ProgrammingError("the connection is closed")
        for _ in range(waiting):
            future, job = self._tx.get()
            assert future is not None
            try:
                result = job()
            except BaseException as error:
                _tell(future, aiosqlite.core.set_exception, error)
            else:
                _tell(future, aiosqlite.core.set_result, result)


def _tell(future: asyncio.Future[Any], settle: Callable[[asyncio.Future[Any], Any], None], value: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: no one is left to be told
        future.get_loop().call_soon_threadsafe(settle, future, value)


def _close_as_it_is(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA synchronous = OFF")
    # SQLite folds the WAL when the last connection closes, unless it is interrupted; a WAL not folded stays.
    connection.interrupt()
    connection.close()
