"""Opening, closing and folding a log: nothing stays held, the WAL does not grow, settings are its own."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_actor.errors import LogHeldError
from sae_actor.eventlog import SqliteLog, verify_folder, writer
from sae_actor.eventlog.audit.streamed import export_running
from sae_actor.eventlog.checkpoint import Checkpoint
from sae_actor.eventlog.lock import FolderLock
from sae_actor.eventlog.reader import PAGE_ROWS, Reader
from sae_actor.eventlog.writer import Writer, _Batch
from tests.eventlog.making import a_draft, copy_while_open, fill, make_log, some_drafts

pytestmark = pytest.mark.anyio


async def is_free(folder: Path) -> bool:
    for _ in range(100):
        try:
            lock = await FolderLock.acquire(folder, shared=False)
        except LogHeldError:
            await asyncio.sleep(0.02)
        else:
            lock.close()
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


async def exported(log: SqliteLog) -> int:
    """Take an export to its end, as a client does; how many events are in it."""
    export = await export_running(log)
    tar = b"".join([part async for part in export.parts])
    assert len(tar) == export.size
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        lines = members.extractfile(f"{export.name}/events.ndjson")
        assert lines is not None
        return len(lines.read().splitlines())


async def test_an_append_waits_for_the_reading_of_five_hundred_rows_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of everything, a filter that finds nothing, a verification, exports: noted by the thread that serves them
    all."""
    log = await SqliteLog.open(tmp_path)
    await fill(log, 6000, per_append=1000)
    done: list[int] = []
    """Of the jobs of the thread, in their order: the rows that a reader's looks at, −1 for an append."""
    store = Writer._store

    async def noted(self: Reader, query: str, parameters: Sequence[int]) -> list[tuple[Any, ...]]:
        first, last = (0, 1) if "FROM meta" in query else parameters[:2]
        rows = last - first if "position <=" in query else last

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
        *[asyncio.ensure_future(exported(log)) for _ in range(3)],
    ]
    for number in range(20):
        await asyncio.sleep(0)
        asked = len(done)
        await log.append([a_draft()], expected=6000 + number)
        assert sum(done[asked : done.index(-1, asked)]) <= PAGE_ROWS
    assert not all(reader.done() for reader in readers), "they were still at it"
    *_, bundle = await asyncio.gather(*readers)
    assert bundle == 6000, "those that were there when it began"
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
