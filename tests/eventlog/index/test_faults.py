"""Whatever becomes of the bytes of `index.db`: no wrong answer, and the next start has it whole again."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_actor.domain.commands import Detach, Steer
from sae_actor.domain.refs import Edit
from sae_actor.domain.views.explanation import Explaining
from sae_actor.eventlog.index import INDEX, Finder, IndexDatabase, catch_up, follow, follower
from tests.domain.dsl import A
from tests.eventlog.making import content
from tests.fakes.log import MemoryLog

from .lives import ATTACHED, lived, looked_up, plainly, redacted

pytestmark = pytest.mark.anyio

TEXTS = [("text", None), ("end of text", 0), ("command", Steer(A, features=(Edit(4, 2.0),)))]
LIFE = [*ATTACHED, *TEXTS * 6, ("restart", True), ("report", (0, True)), ("report", (0, True)), *TEXTS * 4,
        ("command", Detach(A)), ("report", (0, True)), ("text", None)]  # fmt: skip


async def a_log(*more: tuple[str, Any]) -> MemoryLog:
    log, chance = MemoryLog(), random.Random(3)
    await log.append(lived([*LIFE, *more], 1, chance), expected=0)
    await redacted(log, chance)
    return log


async def made(log: MemoryLog, path: Path | None) -> IndexDatabase:
    index = IndexDatabase(path)
    await catch_up(log, index)
    assert index.trusted
    assert index.head == log.head
    return index


def held(index: IndexDatabase) -> list[Any]:
    """Its rows, with names for numbers."""
    db = index._connection()
    names = dict(db.execute("SELECT id, name FROM names").fetchall()) | {0: "", None: None}
    listed = db.execute("SELECT sae, type, position FROM listed").fetchall()
    texts = db.execute("SELECT began, ended, key, principal, tag, readable FROM generations").fetchall()
    return [
        sorted((names[sae], names[kind], position) for sae, kind, position in listed),
        sorted((*row[:3], names[row[3]], names[row[4]] or "", row[5]) for row in texts),
        db.execute("SELECT * FROM turns").fetchall(),
        db.execute("SELECT * FROM blocks").fetchall(),
        sorted(name or "" for name in names.values()),
    ]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "PAGE", 20)


def as_killed(folder: Path, to: Path) -> None:
    """By another process: reading the file here would drop SQLite's locks."""
    subprocess.run(["cp", "-r", str(folder), str(to)], check=True)


@pytest.mark.usefixtures("pages")
async def test_killed_at_every_step(tmp_path: Path) -> None:
    log = await a_log()
    folder = tmp_path / "data"
    steps: list[str] = []
    folder.mkdir()
    index = IndexDatabase(folder / INDEX)

    def step(statement: str) -> None:
        if not steps or steps[-1] != statement[:20]:
            steps.append(statement[:20])
            as_killed(folder, tmp_path / f"step {len(steps)}")

    index._connection().set_trace_callback(step)
    await catch_up(log, index)
    await asyncio.to_thread(index.erase, 5)
    index._connection().set_trace_callback(None)
    index.close()
    assert len(steps) > 60
    whole = held(await made(log, None))
    positions = set()
    for number in range(1, len(steps) + 1):
        left = IndexDatabase(tmp_path / f"step {number}" / INDEX)
        positions.add(left.head.position)
        assert left.check(), f"before {steps[number - 1]}"
        await catch_up(log, left)
        if left.head.position < 5 or number < len(steps) - 20:
            assert held(left) == whole
        left.close()
    assert len(positions) >= 4, "it was killed between pages too"


def one_byte(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def many_bytes(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.randrange(1, 3000)
    return data[:at] + chance.randbytes(min(size, len(data) - at)) + data[at + size :]


def cut_short(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


@pytest.mark.parametrize("change", [one_byte, many_bytes, cut_short])
@pytest.mark.parametrize("killed", [True, False])
async def test_changed_bytes(tmp_path: Path, change: Callable[..., bytes], *, killed: bool) -> None:
    log, chance = await a_log(), random.Random(f"{change.__name__} {killed}")
    folder = tmp_path / "data"
    folder.mkdir()
    index = await made(log, folder / INDEX)
    whole = held(index)
    if killed:
        as_killed(folder, tmp_path / "killed")
    index.close()
    files = {path.name: path.read_bytes() for path in (tmp_path / "killed" if killed else folder).iterdir()}
    expected, found = await plainly(log), 0
    for turn in range(150 if change is one_byte else 50):
        there = tmp_path / f"turn {turn}"
        there.mkdir()
        touched = chance.choice([name for name, data in files.items() if data and not name.endswith("-shm")])
        for name, data in files.items():
            (there / name).write_bytes(change(data, chance) if name == touched else data)
        index = IndexDatabase(there / INDEX)
        finder = Finder(log, index)
        assert finder.upto == 0, "nothing is believed before it was checked"
        found += index.head != log.head or not index.check()
        await catch_up(log, index)
        assert finder.upto == log.head.position
        assert held(index) == whole
        if turn % 25 == 0:
            assert await looked_up(finder) == expected
        index.close()
        shutil.rmtree(there)
    assert found > 5


async def test_what_it_points_at_is_compared_with_the_event(tmp_path: Path) -> None:
    """Rows that lie, with sums that agree."""
    log = await a_log()
    expected = await plainly(log)
    lies = [
        "UPDATE generations SET ended = ended + 1",
        "UPDATE OR REPLACE listed SET position = position + 1",
        "UPDATE generations SET tag = (SELECT max(id) FROM names WHERE kind = 4)",
        "INSERT OR IGNORE INTO turns SELECT began FROM generations",
        "DROP TABLE listed",
        "UPDATE blocks SET earliest = '2000'",
    ]
    for number, lie in enumerate(lies):
        index = await made(log, tmp_path / f"{number}.db")
        index._connection().execute(lie)
        grown = asyncio.Event()
        finder = Finder(log, index, grown)
        assert await looked_up(finder) == expected, lie
        assert grown.is_set()
        assert not index.trusted
        await catch_up(log, index)
        assert index.trusted
        assert index.check()
        index.close()


async def test_what_was_folded_of_a_wrong_index_is_not_kept(tmp_path: Path) -> None:
    log = await a_log()
    index = await made(log, tmp_path / INDEX)
    index._connection().execute("DELETE FROM turns")  # which no look-up can see
    finder = Finder(log, index)
    await finder.explained(lambda: Explaining(limit=1), log.head.position)
    index._connection().execute("DROP TABLE listed")
    await finder.newest("GpuLost", 0, log.head.position, 3)
    assert index.wrong
    await catch_up(log, index)
    assert await looked_up(finder) == await plainly(log)
    assert index.trusted
    index.close()


async def test_one_of_another_log_or_version_is_made_again(tmp_path: Path) -> None:
    log, other = await a_log(), await a_log()
    whole = held(await made(log, None))
    (await made(other, tmp_path / "other.db")).close()
    shutil.copy(tmp_path / "other.db", tmp_path / "version.db")
    with sqlite3.connect(tmp_path / "version.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    (tmp_path / "text.db").write_text("no database")
    (tmp_path / "empty.db").touch()
    for name in ("other.db", "version.db", "text.db", "empty.db", "none.db"):
        index = await made(log, tmp_path / name)
        assert held(index) == whole
        index.close()


async def test_one_that_is_ahead_of_its_log_is_made_again(tmp_path: Path) -> None:
    """The log lost its end, which was accepted, and went on."""
    log = await a_log()
    (await made(log, tmp_path / INDEX)).close()
    lost = log._rows[-6:]
    del log._rows[-6:]
    log._head = type(log._head)(len(log._rows), log._rows[-1].hash.hex())
    index = await made(log, tmp_path / INDEX)
    assert await looked_up(Finder(log, index)) == await plainly(log)
    index.close()
    assert lost


@pytest.mark.parametrize("killed", [True, False])
async def test_where_nothing_may_be_written(tmp_path: Path, *, killed: bool) -> None:
    """By a service that only reads, and by `log explain`: what is there is used, and left as it is."""
    log, folder = await a_log(), tmp_path / "data"
    expected = await plainly(log)
    folder.mkdir()
    index = await made(log, folder / INDEX)
    if killed:
        as_killed(folder, tmp_path / "killed")
        folder = tmp_path / "killed"
        (folder / f"{INDEX}-shm").unlink()
    index.close()
    (tmp_path / "nothing").mkdir()
    for where, upto in ((folder, log.head.position), (tmp_path / "nothing", 0)):
        before = content(where)
        index = IndexDatabase(where / INDEX, read_only=True)
        assert index.head.position == upto
        await catch_up(log, index)
        finder = Finder(log, index)
        assert finder.upto == log.head.position
        assert await looked_up(finder) == expected
        index.close()
        assert content(where) == before


async def test_a_full_disk_costs_the_index_alone(tmp_path: Path) -> None:
    log = await a_log(*[("text", None), ("end of text", 0)] * 300)
    index = IndexDatabase(tmp_path / INDEX)
    index._connection().execute("PRAGMA max_page_count = 14").fetchall()
    await catch_up(log, index)
    assert index.head.position < log.head.position
    finder = Finder(log, index)
    (found,) = (await finder.explained(lambda: Explaining(generation_id="g300"), log.head.position)).views.values()
    assert found.state == "finished"
    index._connection().execute("PRAGMA max_page_count = 100000").fetchall()
    await catch_up(log, index)
    assert finder.upto == log.head.position
    index.close()


async def test_it_follows_a_log_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "REST_SECONDS", 0)
    whole, log = await a_log(), MemoryLog()
    index, grown = IndexDatabase(None), asyncio.Event()
    finder = Finder(log, index, grown)
    following = asyncio.create_task(follow(log, index, grown))
    drafts = await whole.read(0, 10_000)
    for at in range(0, len(drafts), 9):
        await log.append(drafts[at : at + 9], expected=at)
        grown.set()
        while finder.upto < log.head.position:
            await asyncio.sleep(0.001)
        if at % 27 == 0:
            assert await looked_up(finder) == await plainly(log)
    index.distrust()  # as a look-up does that finds it wrong
    grown.set()
    while finder.upto < log.head.position:
        await asyncio.sleep(0.001)
    following.cancel()
    index.close()
