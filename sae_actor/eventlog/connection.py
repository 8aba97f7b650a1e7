"""The log's connection: aiosqlite's, with whole jobs on its thread, one after the other, in order.

It adds four things. A job of several statements is one trip to the thread and back, not one for each. The way back is
our own pipe: the loop's wake-up for threads costs one more turn and a failing read, 20 µs of a commit of 250. A long
job can let others pass. And a connection can be closed with its files left as they are."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import aiosqlite

T = TypeVar("T")

Job: TypeAlias = Callable[[sqlite3.Connection], T]
Done: TypeAlias = Callable[[T | None, BaseException | None], None]
"""done(result, None) or done(None, error), on the event loop."""


class Connection(aiosqlite.Connection):
    """`await Connection.open(connector)`, later `await connection.close()`.

    A job always completes, even if its caller is cancelled. The thread ends with the connection, and does not keep a
    process alive.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._thread.daemon = True
        self._thread.name = "events.db"
        self._closing: asyncio.Future[None] | None = None
        self._news: deque[Callable[[], None]] = deque()
        """What the thread has for the loop; a byte in the pipe for each."""
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._mouth, False)

    @classmethod
    async def open(cls, connector: Callable[[], sqlite3.Connection]) -> Connection:
        """Connect on the new thread. Raises what `connector` raises."""
        connection = cls(connector)
        try:
            await connection
        except BaseException:
            # It reports its end to the loop, unless that is closed by then.
            await asyncio.to_thread(connection._thread.join)
            connection._close_pipe()
            raise
        asyncio.get_running_loop().add_reader(connection._ear, connection._hear)
        return connection

    def submit(self, job: Job[T], done: Done[T]) -> None:
        """Queue a job; `done` is called on the loop. Raises `sqlite3.ProgrammingError` once it is closing."""
        self._refuse_closed()
        self._queue(job, done)

    def _queue(self, job: Job[T], done: Done[T]) -> None:
        def work() -> None:
            try:
                self._news.append(functools.partial(done, job(self._conn), None))
            except BaseException as error:
                self._news.append(functools.partial(done, None, error))
            with contextlib.suppress(BlockingIOError):  # it is full of bytes: the loop will hear
                os.write(self._mouth, b"\0")

        self._tx.put_nowait((None, work))

    def _hear(self) -> None:
        os.read(self._ear, 4096)
        self._hear_out()

    def _hear_out(self) -> None:
        try:
            while self._news:
                self._news.popleft()()
        finally:
            if self._news:  # one of them failed: not the others
                asyncio.get_running_loop().call_soon(self._hear_out)

    async def run(self, job: Job[T]) -> T:
        """Run a job and wait for it. Raises what it raises."""
        self._refuse_closed()
        return await self._answer(job)

    def _answer(self, job: Job[T]) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue(job, functools.partial(_settle, answer))
        return answer

    def _refuse_closed(self) -> None:
        if self._closing is not None:
            raise sqlite3.ProgrammingError("the connection is closed")

    async def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        return await self.run(lambda connection: connection.execute(statement, parameters).fetchall())

    async def close(self, *, as_it_is: bool = False) -> None:
        """Close after the queued jobs; harmless when repeated.

        as_it_is: leave the write-ahead log where it is, neither folded nor synced. After a failed sync another one
        may report unwritten data as written.
        """
        if self._closing is None:
            # Known before anything is queued for it: a long job that gives way does not do what ends the connection.
            self._closing = asyncio.ensure_future(self._end(as_it_is))
        await asyncio.shield(self._closing)

    async def _end(self, as_it_is: bool) -> None:
        try:
            if as_it_is:
                await self._answer(_close_as_it_is)
        finally:
            try:
                await super().close()
            finally:
                self._close_pipe()

    def _close_pipe(self) -> None:
        """Once the thread is done with every job."""
        asyncio.get_running_loop().remove_reader(self._ear)
        self._hear_out()
        os.close(self._ear)
        os.close(self._mouth)

    def give_way(self) -> None:
        """Called by a long job, on the thread, where it can be interrupted: run the jobs that arrived meanwhile.

        Raises `sqlite3.ProgrammingError` if the connection is closing: the long job must end.
        """
        waiting = self._tx.qsize()  # not those that come meanwhile, or it would never get on
        self._refuse_closed()
        for _ in range(waiting):
            _, job = self._tx.get()
            job()


def _settle(answer: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)  # type: ignore[arg-type]  # of a job's T, where there is no error


def _close_as_it_is(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA synchronous = OFF")
    # SQLite folds the WAL when the last connection closes, unless it is interrupted; a WAL not folded stays.
    connection.interrupt()
    connection.close()
