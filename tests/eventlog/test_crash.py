"""kill -9 of a real process while it appends: what was answered is there, and the rest is whole or absent."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from sae_actor.eventlog import SqliteLog, verify_folder
from tests.eventlog.making import python

pytestmark = pytest.mark.anyio


def append_and_kill(folder: Path, writers: int, seconds: float) -> dict[int, str]:
    """Positions and hashes that a process printed before it was killed, the head it found among them."""
    process = python("tests.eventlog.appender", str(folder), str(writers))
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    printed = first + process.communicate()[0]
    # A line cut short by the kill is no answer.
    lines = [line.split() for line in printed.splitlines(keepends=True) if line.endswith("\n")]
    return {int(position): digest for position, digest in lines}


async def kill_often(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: dict[int, str] = {}
    for kill in range(kills):
        answered = append_and_kill(folder, chance.choice([1, 1, 3, 16]), chance.uniform(0, 0.08))
        assert min(answered) >= max(acknowledged, default=0), f"kill {kill} lost acknowledged events"
        acknowledged |= answered
        if kill % 5 == 0:
            assert (await verify_folder(folder)).ok
    assert (await verify_folder(folder)).ok
    log = await SqliteLog.open(folder)
    events = await log.read(0, log.head.position)
    await log.close()
    acknowledged.pop(0, None)  # the head of the empty log
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    lost = [at for at, digest in acknowledged.items() if at > len(events) or events[at - 1].hash != digest]
    print(f"{kills} kills, {len(events)} events, {len(acknowledged)} acknowledged, lost = {len(lost)}")
    assert lost == []
    assert len(acknowledged) > 10 * kills


async def test_eight_kills_lose_nothing_that_was_answered(tmp_path: Path) -> None:
    """Row 2, the log alone; tests/process/test_crash.py kills the whole service."""
    await kill_often(tmp_path, 8, seed=1)


@pytest.mark.crash
@pytest.mark.timeout(600)
async def test_two_hundred_kills_lose_nothing_that_was_answered(tmp_path: Path) -> None:
    await kill_often(tmp_path, 200, seed=2)


def start_and_kill(folder: Path, seconds: float) -> None:
    process = python("tests.eventlog.appender", str(folder), "1")
    deadline = time.monotonic() + 10
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(seconds)
    process.kill()
    process.communicate()


async def test_killed_while_the_log_is_made(tmp_path: Path) -> None:
    """Whatever of a first start is there, the next one begins a log."""
    for delay in range(12):
        folder = tmp_path / str(delay)
        start_and_kill(folder, delay * 0.002)
        log = await SqliteLog.open(folder)
        assert (await log.verify()).ok
        assert sorted(path.suffix for path in folder.iterdir() if path.suffix == ".new") == []
        await log.close()
