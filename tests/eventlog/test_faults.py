"""A disk that is full or fails, a foreign writer, a caller that goes: real ones."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_actor.errors import DiskFullError, LogConflictError, LogError, LogHeldError, LogUnusableError
from sae_actor.eventlog import SqliteLog, verify_folder, writer
from sae_actor.eventlog.checkpoint import Checkpoint
from sae_actor.eventlog.lock import FolderLock
from sae_actor.eventlog.reader import PAGE_ROWS, Reader
from sae_actor.eventlog.writer import Writer, _Batch
from sae_actor.ports import Head
from tests.eventlog.making import REPOSITORY, a_draft, copy_while_open, fill, make_log, some_drafts

pytestmark = pytest.mark.anyio


def fill_disk(ballast: Path) -> None:
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), b"x" * 4096)


async def append_until_full(log: SqliteLog) -> int:
    """Events stored before the disk was full."""
    for _ in range(10_000):
        try:
            await log.append([a_draft("x" * 2000)] * 3, expected=log.head.position)
        except DiskFullError:
            return log.head.position
    pytest.fail("the disk never filled")


async def test_a_full_database_takes_nothing_of_an_append_and_goes_on_reading(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, max_bytes=200_000)
    stored = await append_until_full(log)
    head = log.head
    for _ in range(3):
        with pytest.raises(DiskFullError):
            await log.append([a_draft("x" * 100_000)], expected=stored)
    assert log.head == head
    assert len(await log.read(0, 1000)) == stored
    assert (await log.verify()).ok
    # What waits behind an append that does not fit cannot be stored behind it either.
    results = await asyncio.gather(
        log.append([a_draft("x" * 100_000)], expected=stored),
        log.append([a_draft()], expected=stored + 1),
        return_exceptions=True,
    )
    assert all(isinstance(each, DiskFullError | LogConflictError) for each in results)
    assert log.head == head
    await log.close()
    assert (await verify_folder(tmp_path)).events == stored
    log = await SqliteLog.open(tmp_path)
    await log.append([a_draft("x" * 100_000)], expected=stored)
    await log.close()


async def test_a_limit_below_what_the_log_has_already_lets_it_open(tmp_path: Path) -> None:
    events = await make_log(tmp_path, 300)
    log = await SqliteLog.open(tmp_path, max_bytes=1)
    assert len(await log.read(0, 300)) == len(events)
    with pytest.raises(DiskFullError):
        await log.append([a_draft("x" * 100_000)], expected=300)
    await log.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MiB, where the machine lets us make one."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


async def test_a_full_disk_stores_nothing_and_the_log_goes_on_when_there_is_space(small_disk: Path) -> None:
    """Row 12, the log alone."""
    log = await SqliteLog.open(small_disk / "data")
    await fill(log, 10)
    ballast = small_disk / "ballast"
    fill_disk(ballast)
    stored = await append_until_full(log)
    assert (await log.verify()).ok
    ballast.unlink()
    await log.append([a_draft("x" * 2000)], expected=stored)
    await log.close()
    verification = await verify_folder(small_disk / "data")
    assert (verification.ok, verification.events) == (True, stored + 1)


async def test_a_disk_without_space_for_a_new_log_is_told(small_disk: Path) -> None:
    fill_disk(small_disk / "ballast")
    with pytest.raises(LogUnusableError):
        await SqliteLog.open(small_disk / "data")
    (small_disk / "ballast").unlink()
    log = await SqliteLog.open(small_disk / "data")
    await log.append([a_draft()], expected=0)
    await log.close()


def run_child(script: str, folder: Path) -> str:
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


async def test_after_a_failed_write_the_log_takes_nothing_more(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse a write with EFBIG: an I/O error that is no full disk."""
    answer = run_child(
        """
import asyncio, resource, sys
from pathlib import Path
from sae_actor.errors import DiskFullError, LogError
from sae_actor.eventlog import SqliteLog
from tests.eventlog.making import a_draft

async def main():
    log = await SqliteLog.open(Path(sys.argv[1]))
    await log.append([a_draft()] * 3, expected=0)
    size = (Path(sys.argv[1]) / "events.db-wal").stat().st_size
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))
    waiting = [asyncio.ensure_future(log.append([a_draft("x" * 50_000)], expected=3 + i)) for i in range(3)]
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert type(each) is LogError, each
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for _ in range(3):
        try:
            await log.append([a_draft()], expected=3)
        except LogError as error:
            print(type(error).__name__, error.detail)
    print(log.head.position, len(await log.read()), (await log.verify()).ok)
    await log.close()

asyncio.run(main())
""",
        tmp_path,
    )
    *refusals, state = answer.splitlines()
    assert len(refusals) == 3
    assert all(line.startswith("LogError events.db could not be written (SQLITE_IOERR_WRITE") for line in refusals)
    assert state == "3 3 True"
    assert (await verify_folder(tmp_path)).events == 3
    log = await SqliteLog.open(tmp_path)
    await log.append([a_draft()], expected=3)
    await log.close()


FOREIGN = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/events.db", isolation_level=None)
db.execute("INSERT INTO events SELECT position + 1, event_id, type, schema, time, command_id, principal, data, salt, "
           "data_hash, hash FROM events ORDER BY position DESC LIMIT 1")
db.close()
"""


async def test_a_foreign_write_after_the_locks_were_lost_stops_the_log(tmp_path: Path) -> None:
    """Row 22."""
    log = await SqliteLog.open(tmp_path)
    await fill(log, 9)
    # What must never be done in the process that holds the log: POSIX drops its locks with this close.
    (tmp_path / "events.db").open("rb").close()
    run_child(FOREIGN, tmp_path)
    for _ in range(2):
        with pytest.raises(LogError, match="another process wrote"):
            await log.append([a_draft()], expected=9)
    assert log.head.position == 9
    await log.close()
    # Closing writes our own pages once more, so the foreign row may be gone or not; what we acknowledged is there.
    verification = await verify_folder(tmp_path)
    assert (verification.ok, verification.events) == (True, 9) or verification.first_bad == 10


async def test_a_position_taken_behind_our_back_stops_the_log(tmp_path: Path) -> None:
    """Row 22, told by the trigger."""
    log = await SqliteLog.open(tmp_path)
    await fill(log, 3)
    log._writer.head = Head(1, log.head.hash)
    with pytest.raises(LogError, match="refused the next position"):
        await log.append([a_draft()], expected=1)
    with pytest.raises(LogError):
        await log.append([a_draft()], expected=1)
    await log.close()
    assert (await verify_folder(tmp_path)).ok


async def test_a_checkpoint_that_cannot_be_written_stops_the_log_after_the_append_it_belongs_to(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    checkpoint = log._writer._checkpoint
    assert checkpoint is not None
    # The descriptor becomes one for reading: the kernel refuses the write.
    os.dup2(os.open("/dev/null", os.O_RDONLY), checkpoint._fd)
    (event,) = await log.append([a_draft()], expected=0)
    assert event.position == 1
    with pytest.raises(LogError, match=r"head\.checkpoint could not be written"):
        await log.append([a_draft()], expected=1)
    await log.close()
    log = await SqliteLog.open(tmp_path)
    assert log.head.position == 1
    await log.close()


async def is_free(folder: Path) -> bool:
    for _ in range(100):
        try:
            lock = await FolderLock.acquire(folder, shared=False)
        except LogHeldError:
            await asyncio.sleep(0.02)
        else:
            lock.release()
            return True
    return False


async def test_a_cancelled_open_leaves_nothing_held(tmp_path: Path) -> None:
    await make_log(tmp_path, 300)
    for steps in (0, 1, 2, 3, 5, 8, 13, 50, 200):
        task = asyncio.ensure_future(SqliteLog.open(tmp_path))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task.result().close()
        assert await is_free(tmp_path)
    gc.collect()
    log = await SqliteLog.open(tmp_path)
    assert log.head.position == 300
    await log.close()


async def test_a_cancelled_close_closes(tmp_path: Path) -> None:
    for steps in range(5):
        log = await SqliteLog.open(tmp_path)
        await log.append([a_draft()], expected=steps)
        task = asyncio.ensure_future(log.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await log.close()
    assert (await verify_folder(tmp_path)).events == 5


async def test_the_folder_is_free_and_tidy_after_a_close(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    await fill(log, 1000)
    held = len(os.listdir("/proc/self/fd"))
    await log.close()
    assert len(os.listdir("/proc/self/fd")) < held
    assert sorted(os.listdir(tmp_path)) == ["events.db", "events.lock", "head.checkpoint"]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert (await verify_folder(tmp_path / "copy")).events == 1000


async def test_the_wal_is_folded_into_the_database_as_it_grows(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    for i in range(40):
        await log.append([a_draft("x" * 100_000)] * 5, expected=5 * i)
        await log.append([a_draft()], expected=log.head.position) if i == 39 else None
    sizes = {name: (tmp_path / name).stat().st_size for name in ("events.db", "events.db-wal")}
    assert sizes["events.db"] > 12_000_000
    assert sizes["events.db-wal"] < 8_000_000
    assert (await log.verify()).events == 201
    await log.close()


async def test_the_wal_of_lives_that_were_killed_is_folded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAL_PAGES", 40)
    sizes = []
    for life in range(8):
        folder = tmp_path / f"{life}"
        log = await SqliteLog.open(folder)
        await log.append([a_draft("x" * 30_000)], expected=2 * life)
        await log.append([a_draft()], expected=2 * life + 1)
        copy_while_open(folder, tmp_path / f"{life + 1}")
        await log.close()
        sizes.append((tmp_path / f"{life + 1}" / "events.db-wal").stat().st_size)
    assert max(sizes) < 70 * 4096
    log = await SqliteLog.open(tmp_path / "8")
    assert (await log.verify()).events == 16
    await log.close()


async def test_settings_are_those_of_the_log(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    await log.append(some_drafts(1), expected=0)

    async def setting(name: str) -> object:
        return (await log._db.fetch(f"PRAGMA {name}"))[0][0]

    assert await setting("journal_mode") == "wal"
    assert await setting("synchronous") == 2
    assert await setting("locking_mode") == "exclusive"
    assert await setting("user_version") == 1
    assert await setting("application_id") == int.from_bytes(b"SAEa")
    assert not (tmp_path / "events.db-shm").exists()
    await log.close()
    with sqlite3.connect(tmp_path / "events.db") as db:
        assert (
            db.execute("SELECT strict FROM pragma_table_list WHERE name IN ('events', 'meta')").fetchall() == [(1,)] * 2
        )
    db.close()


async def test_an_append_waits_for_the_reading_of_five_hundred_rows_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of everything, a filter that finds nothing, a verification: noted by the thread that serves them all."""
    log = await SqliteLog.open(tmp_path)
    await fill(log, 6000, per_append=1000)
    done: list[int] = []
    """Of the jobs of the thread, in their order: the rows that a reader's looks at, −1 for an append."""
    store = Writer._store

    async def noted(self: Reader, query: str, parameters: Sequence[int]) -> list[tuple[Any, ...]]:
        rows = parameters[1] - parameters[0] if "position <=" in query else parameters[1]

        def read(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            done.append(rows)
            return connection.execute(query, parameters).fetchall()

        return await self._db.run(read)

    def stored(self: Writer, connection: sqlite3.Connection) -> _Batch:
        done.append(-1)
        return store(self, connection)

    monkeypatch.setattr(Reader, "_fetch", noted)
    monkeypatch.setattr(Writer, "_store", stored)
    readers = [
        *[asyncio.ensure_future(log.read(0, 6000)) for _ in range(10)],
        *[asyncio.ensure_future(log.read(0, 500, types=["GpuLost"])) for _ in range(5)],
        asyncio.ensure_future(log.verify()),
    ]
    for number in range(20):
        await asyncio.sleep(0)
        asked = len(done)
        await log.append([a_draft()], expected=6000 + number)
        assert sum(done[asked : done.index(-1, asked)]) <= PAGE_ROWS
    assert not all(reader.done() for reader in readers), "they were still at it"
    await asyncio.gather(*readers)
    assert max(done) == PAGE_ROWS
    await log.close()


async def test_the_checkpoint_is_synced_by_the_count_and_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 256 events; a minute (here: less) after an event, also where none follows; and at the stop."""
    synced: list[int] = []
    sync = Checkpoint.sync

    def noted(self: Checkpoint) -> None:
        synced.append(log.head.position)
        sync(self)

    monkeypatch.setattr(Checkpoint, "sync", noted)
    log = await SqliteLog.open(tmp_path)
    for number in range(300):
        await log.append([a_draft()], expected=number)
    assert len(synced) == 1
    assert 256 <= synced[0] <= 300
    monkeypatch.setattr(writer, "SYNC_SECONDS", 0.02)
    for drafts, expected in ((some_drafts(256), 300), ([a_draft()], 556)):
        await log.append(drafts, expected=expected)
        async with asyncio.timeout(5):
            while log.head.position not in synced:
                await asyncio.sleep(0.01)
    before = len(synced)
    await asyncio.sleep(0.1)
    assert len(synced) == before, "nothing new to sync"
    await log.append([a_draft()], expected=557)
    await log.close()
    assert synced[-1] == 558
