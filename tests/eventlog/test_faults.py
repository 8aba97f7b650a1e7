"""A disk that is full or fails, a foreign writer, a caller that goes: real ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_actor.errors import DiskFullError, LogConflictError, LogError, LogUnusableError
from sae_actor.eventlog import SqliteLog, verify_folder
from sae_actor.ports import Head
from tests.eventlog.making import REPOSITORY, a_draft, bounded, fill, make_log

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
    log = await bounded(await SqliteLog.open(tmp_path), 200_000)
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
    log = await bounded(await SqliteLog.open(tmp_path), 1)
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
