"""`log verify` and `log show` on a folder: no service, no torch, no byte changed, and damage is an answer."""

from __future__ import annotations

import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from sae_actor.errors import LogDamagedError, LogHeldError, LogUnusableError
from sae_actor.eventlog import SqliteLog, events_of, verify_folder
from tests.eventlog.making import REPOSITORY, content, fill, make_killed_log, make_log, shown

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("make", [make_log, make_killed_log])
async def test_a_whole_log_is_verified_and_shown_as_it_is(tmp_path: Path, make: type) -> None:
    folder = tmp_path / "log"
    events = await make(folder, 1203)
    before = content(folder)
    verification = await verify_folder(folder)
    assert verification.ok
    assert verification.events == 1203
    assert verification.head.hash == events[-1].hash
    assert verification.first_bad is None
    assert shown([event async for event in events_of(folder)]) == shown(events)
    assert [event.position async for event in events_of(folder, after=1200)] == [1201, 1202, 1203]
    assert [event async for event in events_of(folder, after=1203)] == []
    assert [event async for event in events_of(folder, types=["GpuLost"])] == []
    assert len([event async for event in events_of(folder, types=["ActorStopped"])]) == 1203
    assert content(folder) == before


async def test_an_empty_log_verifies(tmp_path: Path) -> None:
    await make_log(tmp_path, 0)
    verification = await verify_folder(tmp_path)
    assert (verification.ok, verification.events) == (True, 0)
    assert [event async for event in events_of(tmp_path)] == []


async def test_a_log_in_use_is_told(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    await fill(log, 3)
    with pytest.raises(LogHeldError) as refusal:
        await verify_folder(tmp_path)
    assert refusal.value.exit_code == 75
    with pytest.raises(LogHeldError):
        await anext(events_of(tmp_path))
    await log.close()


async def test_where_there_is_no_log_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(LogUnusableError):
        await verify_folder(tmp_path)
    with pytest.raises(LogUnusableError):
        await anext(events_of(tmp_path))
    assert content(tmp_path) == {}


async def test_a_reader_that_leaves_early_frees_the_log(tmp_path: Path) -> None:
    await make_log(tmp_path, 600)
    async with aclosing(events_of(tmp_path)) as events:
        assert (await anext(events)).position == 1
    log = await SqliteLog.open(tmp_path)
    await log.close()


async def test_of_a_damaged_log_the_readable_part_is_shown(tmp_path: Path) -> None:
    events = await make_log(tmp_path, 900)
    stored = bytearray((tmp_path / "events.db").read_bytes())
    at = stored.index(b'"reason":"r700"')
    # The page that holds event 701 becomes no page of a table at all.
    stored[at // 4096 * 4096 : at // 4096 * 4096 + 8] = b"\xff" * 8
    (tmp_path / "events.db").write_bytes(stored)
    verification = await verify_folder(tmp_path)
    assert not verification.ok
    assert verification.first_bad is not None
    assert 650 < verification.first_bad <= 701
    assert verification.events == verification.first_bad - 1
    assert verification.head.hash == events[verification.events - 1].hash
    shown_events = events_of(tmp_path)
    assert shown([await anext(shown_events) for _ in range(verification.events)]) == shown(
        events[: verification.events]
    )
    with pytest.raises(LogDamagedError) as damage:
        await anext(shown_events)
    assert damage.value.fields["first_bad"] == verification.first_bad


def test_the_audit_needs_no_torch(tmp_path: Path) -> None:
    script = "import sys, sae_actor.eventlog; print('torch' in sys.modules, 'transformers' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert answer == "False False\n"
    assert content(tmp_path) == {}
