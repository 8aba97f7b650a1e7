"""What is in a backup, what it waits for, and what waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import time
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sae_actor.backups.making import folder_backup, sweep
from sae_actor.errors import DiskFullError, LogError, LogHeldError, LogUnusableError, NotReadyError
from sae_actor.eventlog import SqliteLog, backup, verify_folder
from sae_actor.eventlog.connection import Connection
from sae_actor.eventlog.writer import Writer
from sae_actor.runs.lists import Item
from sae_actor.runs.store import RunFolder
from tests.eventlog.making import a_draft, content, fill, make_log, shown

from .making import backups_of, members, taken

pytestmark = pytest.mark.anyio


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


async def test_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = await SqliteLog.open(folder)
    events = await fill(log, 20)
    lay(folder, "labels/a.ndjson", "vectors/v-1/vectors.safetensors", "runs/deep/er/rows.txt")
    # Neither what can be made again, nor secrets, nor what is not whole.
    lay(folder, "features.db", "index.db", "snapshots/1", "tokens.toml", "config.toml", "hub/x", "texts/t.txt")
    lay(folder, "vectors/v-2.abc.tmp/vectors.safetensors", "labels/b.ndjson.tmp", "runs/r.db-wal", "runs/incoming/x")
    (folder / "labels" / "link").symlink_to("/etc/passwd")
    found = members(await taken(await backups_of(log, folder).begin(saes=True)))
    assert [*found] == [
        "events.db", "head.checkpoint", "labels/a.ndjson", "vectors/v-1/vectors.safetensors", "runs/deep/er/rows.txt",
        "manifest.json",
    ]  # fmt: skip
    manifest = json.loads(found.pop("manifest.json"))
    assert manifest["head"] == {"position": 20, "hash": events[-1].hash}
    assert (manifest["log_id"], manifest["branch_id"], manifest["witnessed"]) == (log.log_id, None, True)
    assert manifest["files"] == [
        {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in found.items()
    ]
    lay(tmp_path / "copy", "events.db", "head.checkpoint")
    for name in ("events.db", "head.checkpoint"):
        (tmp_path / "copy" / name).write_bytes(found[name])
    verification = await verify_folder(tmp_path / "copy")
    assert (verification.ok, verification.unproven, verification.events) == (True, False, 20)
    await log.close()


async def test_an_append_waits_for_one_step_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: between an append's arrival and its transaction at most one step of a few pages is done."""
    monkeypatch.setattr(backup, "STEP_PAGES", 2)
    steps, stored = [0], []
    give_way, store = Connection.give_way, Writer._store

    def counted(self: Connection) -> None:
        time.sleep(0.001)  # a slow disk: steps last, and appends come during each
        steps[0] += 1
        give_way(self)

    def noted(self: Writer, connection: sqlite3.Connection) -> Any:
        stored.append(steps[0])
        return store(self, connection)

    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 3000, per_append=500)
    monkeypatch.setattr(Connection, "give_way", counted)
    monkeypatch.setattr(Writer, "_store", noted)
    beginning = asyncio.ensure_future(backups_of(log, tmp_path / "log").begin(saes=False))
    waited = []
    while not beginning.done():
        answer = log._writer.append([a_draft()], log.head.position)
        arrived = steps[0]
        await answer
        waited.append(stored[-1] - arrived)
        await asyncio.sleep(0)
    assert max(waited) <= 1
    during = [steps for steps in stored if 0 < steps < max(stored)]
    assert len(set(during)) > 20, "appends were stored all along"
    (await beginning).close()
    await log.close()


async def test_events_appended_meanwhile_are_in_it_or_not(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 3000, per_append=500)
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await log.append([a_draft("x" * 300)], expected=log.head.position)

    writing = asyncio.ensure_future(write())
    made = await backups_of(log, tmp_path / "log").begin(saes=False)
    done.set()
    await writing
    (tmp_path / "copy").mkdir()
    for name, data in members(await taken(made)).items():
        (tmp_path / "copy" / name).write_bytes(data)
    copy = await SqliteLog.open(tmp_path / "copy", read_only=True)
    assert copy.head == made.head
    assert shown(await copy.read(0, 10_000)) == shown(await log.read(0, made.head.position))
    await copy.close()
    await log.close()


async def test_one_at_a_time(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 3)
    backups = backups_of(log, tmp_path / "log")
    first = await backups.begin(saes=False)
    with pytest.raises(NotReadyError, match="another backup"):
        await backups.begin(saes=False)
    first.close()
    first.close()
    (await backups.begin(saes=False)).close()
    await log.close()


async def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs room for a copy of the live file, and for nothing else of the folder."""
    folder = tmp_path / "log"
    log = await SqliteLog.open(folder)
    await fill(log, 500, per_append=100)
    lay(folder, "vectors/large")
    (folder / "vectors" / "large").write_bytes(bytes(1 << 20))
    before, needed, backups = content(folder), await log.size(), backups_of(log, folder)
    usage = namedtuple("usage", "total used free")

    def full(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, free + (64 << 20)))

    full(needed - 1)
    with pytest.raises(DiskFullError) as refusal:
        await backups.begin(saes=False)
    assert (refusal.value.status, refusal.value.fields["needed_bytes"]) == (507, needed)
    assert content(folder) == before
    full(needed)
    assert len(await taken(await backups.begin(saes=False))) > needed
    assert content(folder) == before
    await log.close()


async def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 500, per_append=100)
    connect = sqlite3.connect

    def limited(*given: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*given, **more)
        connection.execute("PRAGMA max_page_count = 3").fetchall()
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    with pytest.raises(DiskFullError):
        await backups_of(log, tmp_path / "log").begin(saes=False)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "log").iterdir() if path.is_dir()) == []
    await log.append([a_draft()], expected=500)
    await log.close()


async def test_what_is_deleted_meanwhile_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = await SqliteLog.open(folder)
    await fill(log, 3)
    lay(folder, "vectors/v-1/vectors.safetensors", "labels/a")
    made = await backups_of(log, folder).begin(saes=False)
    shutil.rmtree(folder / "vectors")
    (folder / "labels" / "a").unlink()
    found = members(await taken(made))
    assert found["vectors/v-1/vectors.safetensors"] == b"vectors/v-1/vectors.safetensors"
    assert found["labels/a"] == b"labels/a"
    await log.close()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_run_that_is_erased_meanwhile_is_in_it(tmp_path: Path, *, closed: bool) -> None:
    """Its database is copied when its turn comes: by its second name, with what its write-ahead log has."""
    folder = tmp_path / "log"
    log = await SqliteLog.open(folder)
    await fill(log, 3)
    runs = RunFolder(folder / "runs")
    file = runs.create("run-1")
    texts = file.add_texts("texts", [Item(text=f"text {number}") for number in range(40)])
    file.commit(rows=[{"row": number} for number in range(30)])
    made = await backups_of(log, folder).begin(saes=False)
    file.commit(rows=[{"row": 30}])
    if closed:
        file.close()
    runs.erase("run-1")
    data = members(await taken(made))["runs/run-1.db"]
    (tmp_path / "run-1.db").write_bytes(data)
    with closing(RunFolder(tmp_path).open("run-1")) as copy:
        assert [msgspec.json.decode(line) for _, line in copy.rows(0)] == [{"row": number} for number in range(31)]
        assert copy.described("texts") == texts
    assert [path for path in folder.iterdir() if path.name.startswith("backup.")] == []
    if not closed:
        file.close()
    await log.close()


@pytest.mark.parametrize("killed", [True, False])
async def test_runs_of_a_folder_that_nobody_writes_in(tmp_path: Path, *, killed: bool) -> None:
    """By a service that only reads, and without one: no byte of the folder changes, no file is made."""
    folder = tmp_path / "log"
    await make_log(folder, 3)
    file = RunFolder(tmp_path / "made" if killed else folder / "runs").create("run-1")
    file.add_texts("texts", [Item(text="a")])
    file.commit(rows=[{"row": 0}])
    if killed:
        await asyncio.to_thread(shutil.copytree, tmp_path / "made", folder / "runs")
        (folder / "runs" / "run-1.db-shm").unlink()
    file.close()
    before = content(folder)
    assert ("runs/run-1.db-wal" in before) is killed
    log = await SqliteLog.open(folder, read_only=True)
    for data in (await taken(await backups_of(log, folder).begin(saes=False)), await _of_folder(folder)):
        (tmp_path / "run-1.db").write_bytes(members(data)["runs/run-1.db"])
        with closing(RunFolder(tmp_path).open("run-1")) as copy:
            assert copy.rows(0) == [(1, b'{"row":0}')]
    await log.close()
    assert content(folder) == before


async def _of_folder(folder: Path) -> bytes:
    async with folder_backup(folder, saes=False) as made:
        return await taken(made)


async def test_one_that_is_not_read_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = await SqliteLog.open(folder)
    await fill(log, 300, per_append=100)
    before = content(folder)
    made = await backups_of(log, folder).begin(saes=False)
    assert [path.name for path in folder.iterdir() if path.is_dir()] != []
    parts = made.parts()
    await anext(parts)
    made.close()
    with pytest.raises(LogError):  # the next member is gone
        async for _ in parts:
            pass
    assert content(folder) == before
    # What a killed process left goes at the next start.
    lay(folder, "backup.abc.tmp/log/events.db", "vectors/v-1/vectors.safetensors")
    sweep(folder)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["vectors"]
    await log.close()


async def test_a_log_opened_for_reading_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    await make_log(folder, 30)
    lay(folder, "vectors/v-1/vectors.safetensors")
    before = content(folder)
    log = await SqliteLog.open(folder, read_only=True)
    made = await backups_of(log, folder).begin(saes=False)
    assert content(folder) == before
    assert [*members(await taken(made))] == [
        "events.db", "head.checkpoint", "vectors/v-1/vectors.safetensors", "manifest.json",
    ]  # fmt: skip
    await log.close()


async def test_of_a_stopped_service(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    events = await make_log(folder, 30)
    lay(folder, "vectors/v-1/vectors.safetensors", "index.db")
    before = content(folder)
    async with folder_backup(folder, saes=False) as made:
        found = members(await taken(made))
    assert [*found] == ["events.db", "head.checkpoint", "vectors/v-1/vectors.safetensors", "manifest.json"]
    assert json.loads(found["manifest.json"])["head"] == {"position": 30, "hash": events[-1].hash}
    assert content(folder) == before
    log = await SqliteLog.open(folder)
    with pytest.raises(LogHeldError):
        async with folder_backup(folder, saes=False):
            pass
    await log.close()
    with pytest.raises(LogUnusableError, match="there is no log"):
        async with folder_backup(tmp_path / "nothing", saes=False):
            pass


async def test_row_78_a_backup_proves_no_more_than_its_log(tmp_path: Path) -> None:
    """Without its checkpoint a log may have lost its end; a backup of it must not look as if that were known."""
    folder = tmp_path / "log"
    await make_log(folder, 30)
    (folder / "head.checkpoint").unlink()
    async with folder_backup(folder, saes=False) as made:
        found = members(await taken(made))
    assert "head.checkpoint" not in found
    assert json.loads(found["manifest.json"])["witnessed"] is False
