"""Bytes that change and tails that go: found, told with the first bad position, and left as they are."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sae_actor.domain.events import Event, LogTruncated, draft
from sae_actor.errors import LogDamagedError, LogError, LogUnusableError
from sae_actor.eventlog import SqliteLog, events_of, verify_folder
from sae_actor.eventlog.checkpoint import NAME as CHECKPOINT
from sae_actor.ports import Head
from tests.eventlog.making import TIME, a_draft, content, fill, make_killed_log, make_log, shown

pytestmark = pytest.mark.anyio


def change_byte(path: Path, at: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ mask]))


async def found(folder: Path, events: Sequence[Event]) -> bool:
    """Verification finds damage; or it does not, and every event is still there to the last byte."""
    try:
        verification = await verify_folder(folder)
    except LogError:
        return True
    if not verification.ok:
        return True
    assert shown([event async for event in events_of(folder)]) == shown(events)
    log = await SqliteLog.open(folder, read_only=True)
    try:
        for command_id in ("c0", "c1", "c2", "c3", "c4"):
            expected = [event for event in events if event.command_id == command_id]
            assert shown(await log.of_command(command_id)) == shown(expected)
    finally:
        await log.close()
    return False


@pytest.mark.parametrize(
    ("name", "cases"),
    [("events.db", 400), ("events.db-wal", 150), pytest.param("all", 20_000, marks=pytest.mark.crash)],
)
@pytest.mark.timeout(1200)
async def test_any_changed_byte_that_touches_an_event_is_found(tmp_path: Path, name: str, cases: int) -> None:
    """Rows 16 and 17."""
    chance = random.Random(name)
    logs = {name: tmp_path / name for name in ("events.db", "events.db-wal")}
    events = {
        "events.db": await make_log(logs["events.db"], 60),
        "events.db-wal": await make_killed_log(logs["events.db-wal"], 60),
    }
    hits = 0
    for case in range(cases):
        file = chance.choice(list(logs)) if name == "all" else name
        folder = tmp_path / "case"
        shutil.copytree(logs[file], folder)
        at = chance.randrange((folder / file).stat().st_size)
        change_byte(folder / file, at, 1 << chance.randrange(8) if case % 2 else chance.randrange(1, 256))
        before = content(folder)
        hits += await found(folder, events[file])
        assert content(folder) == before, f"byte {at}: something was modified"
        shutil.rmtree(folder)
    assert hits > cases / 20
    print(f"{name}: {cases} changed bytes, {hits} touched an event or the structure, all found")


async def test_a_flipped_bit_of_a_payload_is_found_at_its_event(tmp_path: Path) -> None:
    """Row 17, one bit."""
    await make_log(tmp_path, 9)
    stored = (tmp_path / "events.db").read_bytes()
    change_byte(tmp_path / "events.db", stored.index(b'"reason":"r6"') + 11, 1)
    for opening in (SqliteLog.open(tmp_path), SqliteLog.open(tmp_path, read_only=True)):
        with pytest.raises(LogDamagedError, match="event 7: the payload does not match its digest") as refusal:
            await opening
        assert refusal.value.fields["first_bad"] == 7
    assert (await verify_folder(tmp_path)).events == 6


@pytest.mark.parametrize("pages", [1, 2, 5, -1])
async def test_a_truncated_database_is_found(tmp_path: Path, pages: int) -> None:
    """Row 17, truncated."""
    await make_log(tmp_path, 200)
    size = (tmp_path / "events.db").stat().st_size
    os.truncate(tmp_path / "events.db", pages * 4096 if pages > 0 else size - 4096)
    before = content(tmp_path)
    with pytest.raises(LogDamagedError):
        await SqliteLog.open(tmp_path)
    verification = await verify_folder(tmp_path)
    assert not verification.ok
    assert verification.first_bad is not None
    assert content(tmp_path) == before


def delete_wal(folder: Path) -> None:
    (folder / "events.db-wal").unlink()


def empty_wal(folder: Path) -> None:
    os.truncate(folder / "events.db-wal", 0)


def halve_wal(folder: Path) -> None:
    os.truncate(folder / "events.db-wal", (folder / "events.db-wal").stat().st_size // 2)


def cut_last_frame(folder: Path) -> None:
    os.truncate(folder / "events.db-wal", (folder / "events.db-wal").stat().st_size - 1)


def spoil_wal_header(folder: Path) -> None:
    change_byte(folder / "events.db-wal", 0, 0xFF)


DROPS: list[Callable[[Path], None]] = [delete_wal, empty_wal, halve_wal, cut_last_frame, spoil_wal_header]


@pytest.mark.parametrize("drop", DROPS)
async def test_a_dropped_tail_is_found_and_accepted_only_by_its_position(
    tmp_path: Path, drop: Callable[[Path], None]
) -> None:
    """Row 16."""
    folder = tmp_path / "log"
    events = await make_killed_log(folder, 30)
    drop(folder)
    before = content(folder)
    with pytest.raises(LogDamagedError, match="--accept-truncation") as refusal:
        await SqliteLog.open(folder)
    assert refusal.value.exit_code == 65
    assert content(folder) == before
    left = refusal.value.fields["events"]
    assert left < 30
    assert refusal.value.fields["first_bad"] == left + 1
    for wrong in (left - 1, left + 1, 30):
        with pytest.raises(LogDamagedError):
            await SqliteLog.open(folder, accept_truncation=wrong)
    assert content(folder) == before

    log = await SqliteLog.open(folder, accept_truncation=left)
    assert log.head.position == left
    assert log.truncation == Head(30, events[29].hash)
    await log.close()
    # Accepted but not on record yet: the loss is still refused.
    with pytest.raises(LogDamagedError):
        await SqliteLog.open(folder)

    log = await SqliteLog.open(folder, accept_truncation=left)
    known = log.truncation
    assert known is not None
    payload = LogTruncated(known_position=known.position, known_hash=known.hash, why="accepted")
    await log.append([draft(payload, time=TIME, command_id=None, principal="local")], expected=left)
    await fill(log, 5)
    await log.close()
    log = await SqliteLog.open(folder)
    assert log.truncation is None
    assert log.head.position == left + 6
    assert (await log.verify()).ok
    await log.close()


async def test_a_loss_on_record_is_known_although_the_checkpoint_was_not_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    await make_killed_log(folder, 30)
    delete_wal(folder)
    stale = (folder / CHECKPOINT).read_bytes()
    log = await SqliteLog.open(folder, accept_truncation=0)
    assert log.truncation is not None
    payload = LogTruncated(known_position=30, known_hash=log.truncation.hash, why="accepted")
    await log.append([draft(payload, time=TIME, command_id=None, principal="local")], expected=0)
    await log.close()
    (folder / CHECKPOINT).write_bytes(stale)
    log = await SqliteLog.open(folder)
    await fill(log, 40)
    await log.close()
    (folder / CHECKPOINT).write_bytes(stale)
    log = await SqliteLog.open(folder)
    assert log.head.position == 41
    await log.close()


async def test_a_loss_is_accepted_only_where_one_is_proven(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    await make_log(folder, 9)
    before = content(folder)
    for read_only in (False, True):
        for position in (4, 9, 100):
            with pytest.raises(LogUnusableError, match=r"ends at event 9, and no event is lost"):
                await SqliteLog.open(folder, read_only=read_only, accept_truncation=position)
        with pytest.raises(LogUnusableError, match=r"there is no log in .*mistyped"):
            await SqliteLog.open(tmp_path / "mistyped", read_only=read_only, accept_truncation=9)
    assert content(folder) == before
    assert not (tmp_path / "mistyped").exists()
    (folder / CHECKPOINT).unlink()
    with pytest.raises(LogUnusableError, match=r"without a head\.checkpoint a loss is not proven"):
        await SqliteLog.open(folder, accept_truncation=9)


async def test_the_start_that_accepted_a_loss_may_be_repeated(tmp_path: Path) -> None:
    """As a supervisor does that keeps the flag."""
    await make_killed_log(tmp_path / "log", 30)
    delete_wal(tmp_path / "log")
    log = await SqliteLog.open(tmp_path / "log", accept_truncation=0)
    known = log.truncation
    assert known is not None
    payload = LogTruncated(known_position=known.position, known_hash=known.hash, why="accepted")
    await log.append([draft(payload, time=TIME, command_id=None, principal="local")], expected=0)
    await fill(log, 3)
    await log.close()
    log = await SqliteLog.open(tmp_path / "log", accept_truncation=0)
    assert log.truncation is None
    assert log.head.position == 4
    await log.close()
    with pytest.raises(LogUnusableError):
        await SqliteLog.open(tmp_path / "log", accept_truncation=1)


async def test_an_older_copy_of_the_log_is_refused(tmp_path: Path) -> None:
    """Row 18, ahead of the log."""
    folder = tmp_path / "log"
    await make_log(folder, 9)
    shutil.copy(folder / "events.db", tmp_path / "backup.db")
    log = await SqliteLog.open(folder)
    await fill(log, 9)
    await log.close()
    shutil.copy(tmp_path / "backup.db", folder / "events.db")
    with pytest.raises(LogDamagedError, match="recorded event 18, the log ends at 9"):
        await SqliteLog.open(folder)


async def test_a_log_that_went_another_way_is_refused(tmp_path: Path) -> None:
    """An old copy to which other events were appended: longer than the checkpoint, and not the same log."""
    folder = tmp_path / "log"
    await make_log(folder, 9)
    shutil.copytree(folder, tmp_path / "branch")
    for path, count in ((folder, 3), (tmp_path / "branch", 20)):
        log = await SqliteLog.open(path)
        await fill(log, count)
        await log.close()
    shutil.copy(tmp_path / "branch" / "events.db", folder / "events.db")
    before = content(folder)
    with pytest.raises(LogDamagedError, match="replaced or rewritten") as refusal:
        await SqliteLog.open(folder, accept_truncation=29)
    assert 1 <= refusal.value.fields["first_bad"] <= 12
    assert content(folder) == before


async def test_a_missing_checkpoint_is_made_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 18, missing."""
    await make_log(tmp_path, 9)
    (tmp_path / CHECKPOINT).unlink()
    verification = await verify_folder(tmp_path)
    assert verification.ok
    assert verification.unproven
    assert "no head.checkpoint" in (verification.detail or "")
    with caplog.at_level(logging.WARNING):
        log = await SqliteLog.open(tmp_path)
    assert "no head.checkpoint" in caplog.text
    await log.close()
    assert (await verify_folder(tmp_path)).detail is None
    assert not (await verify_folder(tmp_path)).unproven


async def test_a_checkpoint_of_another_log_is_refused(tmp_path: Path) -> None:
    """Row 18, of another log."""
    await make_log(tmp_path / "log", 9)
    await make_log(tmp_path / "other", 9)
    shutil.copy(tmp_path / "other" / CHECKPOINT, tmp_path / "log" / CHECKPOINT)
    before = content(tmp_path / "log")
    with pytest.raises(LogDamagedError, match="belongs to the log"):
        await SqliteLog.open(tmp_path / "log", accept_truncation=9)
    assert content(tmp_path / "log") == before


@pytest.mark.parametrize("text", [b"", b"x" * 8192, b"\0" * 8192])
async def test_a_checkpoint_that_says_nothing_is_refused(tmp_path: Path, text: bytes) -> None:
    await make_log(tmp_path, 9)
    (tmp_path / CHECKPOINT).write_bytes(text)
    with pytest.raises(LogDamagedError, match="delete the file"):
        await SqliteLog.open(tmp_path)
    assert not (await verify_folder(tmp_path)).ok


async def test_a_torn_slot_leaves_the_other_one(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 10, per_append=1)
    await log.close()
    for slot in (0, 4096):
        shutil.copytree(tmp_path / "log", tmp_path / f"{slot}")
        change_byte(tmp_path / f"{slot}" / CHECKPOINT, slot + 20, 0xFF)
        log = await SqliteLog.open(tmp_path / f"{slot}")
        assert log.head.position == 10
        await log.close()


async def test_a_log_ahead_of_its_checkpoint_is_sound(tmp_path: Path) -> None:
    """The power went before the checkpoint was synced."""
    await make_log(tmp_path, 9)
    stale = (tmp_path / CHECKPOINT).read_bytes()
    log = await SqliteLog.open(tmp_path)
    await fill(log, 9)
    await log.close()
    (tmp_path / CHECKPOINT).write_bytes(stale)
    log = await SqliteLog.open(tmp_path)
    assert log.head.position == 18
    await log.append([a_draft()], expected=18)
    await log.close()


async def test_the_running_log_notices_what_is_changed_under_it(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    await fill(log, 900)
    for statement in ("DROP TRIGGER events_are_final", "UPDATE events SET principal = 'root' WHERE position = 777"):
        await log._db.fetch(statement)
    verification = await log.verify()
    assert (verification.ok, verification.first_bad) == (False, 777)
    assert await log.verify(full=False) == verification
    await log._db.fetch("UPDATE events SET principal = 'local' WHERE position = 777")
    assert (await log.verify()).ok
    await log._db.fetch("UPDATE events SET principal = CAST(x'ff' AS TEXT) WHERE position = 501")
    verification = await log.verify()
    assert (verification.ok, verification.first_bad) == (False, 501)
    await log.close()
