"""Jobs on the connection's thread: the seam to aiosqlite."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from sae_actor.eventlog.connection import Connection

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


async def opened(database: Path) -> Connection:
    return await Connection.open(lambda: sqlite3.connect(database, isolation_level=None))


async def test_jobs_run_in_order_on_one_thread(database: Path) -> None:
    db = await opened(database)
    told: list[tuple[threading.Thread | None, BaseException | None]] = []
    await db.run(lambda connection: connection.execute("CREATE TABLE t (n)"))

    def insert(connection: sqlite3.Connection) -> threading.Thread:
        connection.execute("INSERT INTO t SELECT count(*) FROM t")
        return threading.current_thread()

    for _ in range(3):
        db.submit(insert, lambda thread, error: told.append((thread, error)))
    assert await db.fetch("SELECT n FROM t ORDER BY rowid") == [(0,), (1,), (2,)]
    (thread,) = {thread for thread, _ in told}
    assert thread is not None
    assert (thread.name, thread.daemon, told) == ("events.db", True, [(thread, None)] * 3)
    await db.close()
    await db.close()
    with pytest.raises(sqlite3.ProgrammingError):
        await db.run(lambda connection: connection.execute("SELECT 1"))


async def test_errors_reach_who_asked(database: Path, tmp_path: Path) -> None:
    db = await opened(database)
    with pytest.raises(sqlite3.OperationalError):
        await db.fetch("SELECT nothing")
    told: list[BaseException | None] = []
    db.submit(lambda connection: connection.execute("SELECT nothing"), lambda _, error: told.append(error))
    await db.fetch("SELECT 1")
    assert isinstance(told[0], sqlite3.OperationalError)
    await db.close()
    with pytest.raises(sqlite3.OperationalError):
        await Connection.open(lambda: sqlite3.connect(tmp_path / "no" / "folder.db"))


async def test_a_cancelled_wait_cuts_no_job_off(database: Path) -> None:
    db = await opened(database)
    go_on = threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        go_on.wait(5)
        connection.execute("CREATE TABLE t (n)")

    task = asyncio.create_task(db.run(slow))
    await asyncio.sleep(0.01)
    task.cancel()
    go_on.set()
    assert await db.fetch("SELECT name FROM sqlite_master") == [("t",)]
    await db.close()


async def test_a_long_job_gives_way_and_ends_with_the_connection(database: Path) -> None:
    db = await opened(database)
    begun = threading.Event()

    def long(_: sqlite3.Connection) -> None:
        while True:
            begun.set()
            db.give_way()

    task = asyncio.create_task(db.run(long))
    await asyncio.to_thread(begun.wait)
    assert await db.fetch("SELECT 1") == [(1,)]
    with pytest.raises(sqlite3.OperationalError):
        await db.fetch("SELECT nothing")
    await db.close()
    with pytest.raises(sqlite3.ProgrammingError):
        await task


async def test_a_database_left_as_it_is_keeps_its_wal(database: Path) -> None:
    for as_it_is, left in ((True, True), (False, False)):
        db = await opened(database)
        await db.fetch("PRAGMA journal_mode = WAL")
        await db.fetch("CREATE TABLE IF NOT EXISTS t (n)")
        await db.close(as_it_is=as_it_is)
        assert database.with_name("some.db-wal").exists() is left


async def test_what_one_is_told_reaches_the_next_though_the_first_fails(database: Path) -> None:
    db = await opened(database)
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    told: list[int | None] = []

    def fail(result: int | None, error: BaseException | None) -> None:
        raise ArithmeticError

    held = threading.Event()
    db.submit(lambda _: held.wait(5), lambda _, __: None)
    for done in (fail, lambda result, _: told.append(result)):
        db.submit(lambda _: 7, done)
    held.set()
    await db.fetch("SELECT 1")
    await db.close()
    assert told == [7]
    assert [type(each["exception"]) for each in failures] == [ArithmeticError]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files where the system lists them")
async def test_a_closed_connection_leaves_no_file_open(database: Path, tmp_path: Path) -> None:
    def opened_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await (await opened(database)).close()
    before = opened_files()
    for _ in range(20):
        await (await opened(database)).close()
        with pytest.raises(sqlite3.OperationalError):
            await Connection.open(lambda: sqlite3.connect(tmp_path / "no" / "folder.db"))
    assert opened_files() == before
