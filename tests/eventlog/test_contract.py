"""What every `EventLog` promises, asked of both."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from sae_actor.domain.events import ActorStopped, draft
from sae_actor.errors import LogConflictError, LogDamagedError, LogError, TooLargeError
from sae_actor.eventlog import SqliteLog
from sae_actor.eventlog.audit.streamed import export_running
from sae_actor.eventlog.chain import Row
from sae_actor.ports import EventLog, Head
from tests.eventlog.making import TIME, a_draft, shown, some_drafts
from tests.fakes.log import MemoryLog

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    log: EventLog = MemoryLog() if request.param == "memory" else await SqliteLog.open(tmp_path / "data")
    yield log
    await log.close()


async def test_a_new_log_is_empty(log: EventLog) -> None:
    assert re.fullmatch("[0-9a-f]{32}", log.log_id)
    assert log.head.position == 0
    assert re.fullmatch("[0-9a-f]{64}", log.head.hash)
    assert await log.read() == []
    assert (await log.verify()).ok


async def test_events_get_positions_without_gap_and_are_read_as_they_were_told(log: EventLog) -> None:
    drafts = some_drafts(5)
    first = await log.append(drafts[:2], expected=0)
    second = await log.append(drafts[2:], expected=2)
    events = [*first, *second]
    assert [event.position for event in events] == [1, 2, 3, 4, 5]
    assert [bytes(event.data) for event in events] == [bytes(each.data) for each in drafts]
    assert [event.event_id for event in events] == [each.event_id for each in drafts]
    assert log.head == Head(5, events[-1].hash)
    assert shown(await log.read()) == shown(events)
    assert events[0].payload() == ActorStopped(reason="r0")


@pytest.mark.parametrize("expected", [-1, 1, 3, 2**63, -(2**70)])
async def test_another_head_than_expected_is_a_conflict(log: EventLog, expected: int) -> None:
    await log.append(some_drafts(2), expected=0)
    with pytest.raises(LogConflictError):
        await log.append([a_draft()], expected=expected)
    assert log.head.position == 2
    await log.append([a_draft()], expected=2)


async def test_an_append_of_nothing_stores_nothing(log: EventLog) -> None:
    assert await log.append([], expected=0) == ()
    with pytest.raises(LogConflictError):
        await log.append([], expected=1)
    assert log.head.position == 0


async def test_pages(log: EventLog) -> None:
    await log.append(some_drafts(1203), expected=0)
    assert [e.position for e in await log.read(0, 3)] == [1, 2, 3]
    assert [e.position for e in await log.read(1201)] == [1202, 1203]
    assert [e.position for e in await log.read(-5, 2)] == [1, 2]
    assert len(await log.read()) == 500
    assert [e.position for e in await log.read(3, 1100)] == list(range(4, 1104))
    assert len(await log.read(0, 5000)) == 1203
    for after in (1203, 1204, 2**63, 2**80):
        assert await log.read(after) == []
    assert await log.read(0, 0) == []


async def test_reading_by_type(log: EventLog) -> None:
    for i in range(700):
        kind = "GpuLost" if i in (3, 600, 699) else "ActorStopped"
        await log.append([replace(a_draft(), type=kind)], expected=i)
    assert [e.position for e in await log.read(types=["GpuLost"])] == [4, 601, 700]
    assert [e.position for e in await log.read(4, 1, types=["GpuLost", "NoSuch"])] == [601]
    assert len(await log.read(0, 650, types=["ActorStopped", "GpuLost"])) == 650
    assert await log.read(types=[]) == []
    assert await log.read(types=["' OR 1=1 --"]) == []


async def test_events_of_a_command(log: EventLog) -> None:
    await log.append(some_drafts(12), expected=0)
    assert [e.position for e in await log.of_command("c1")] == [2, 7, 12]
    assert await log.of_command("none") == []


@pytest.mark.parametrize("text", ["", "é", "日本語", "🙂", "a\x00b", "\u2028", "e\u0301", "\r\n", "\ufeff"])
async def test_texts_come_back_to_the_letter(log: EventLog, text: str) -> None:
    (event,) = await log.append([a_draft(text, command_id=text, principal=text)], expected=0)
    (read,) = await log.read()
    assert (read.command_id, read.principal, read.payload()) == (text, text, ActorStopped(reason=text))
    assert shown([read]) == shown([event])
    assert (await log.verify()).ok


async def test_text_without_a_utf8_form_is_refused_and_harms_no_one(log: EventLog) -> None:
    results = await asyncio.gather(
        log.append([a_draft(principal="\ud800")], expected=0),
        log.append([a_draft()], expected=0),
        return_exceptions=True,
    )
    assert isinstance(results[0], UnicodeEncodeError)
    assert log.head.position == 1


async def test_an_event_above_the_limit_is_refused_and_nothing_of_its_append_is_stored(log: EventLog) -> None:
    fits = a_draft("x" * (256 * 1024 - 500))
    with pytest.raises(TooLargeError):
        await log.append([a_draft(), a_draft("x" * 256 * 1024), a_draft()], expected=0)
    with pytest.raises(TooLargeError):
        await log.append([a_draft(principal="x" * 256 * 1024)], expected=0)
    with pytest.raises(TooLargeError):
        await log.append(some_drafts(2049), expected=0)
    assert log.head.position == 0
    await log.append([fits], expected=0)
    assert bytes((await log.read())[0].data) == bytes(fits.data)
    await log.append(some_drafts(2048), expected=1)
    assert log.head.position == 2049


async def test_of_many_appends_behind_one_position_one_is_stored(log: EventLog) -> None:
    results = await asyncio.gather(
        *(log.append([a_draft(f"{i}")], expected=0) for i in range(50)), return_exceptions=True
    )
    assert sum(not isinstance(each, BaseException) for each in results) == 1
    assert sum(isinstance(each, LogConflictError) for each in results) == 49
    assert log.head.position == 1


async def test_appends_that_wait_one_behind_the_other_are_all_stored_in_order(log: EventLog) -> None:
    results = await asyncio.gather(*(log.append(some_drafts(3, f"{i}-"), expected=3 * i) for i in range(300)))
    assert [event.position for events in results for event in events] == list(range(1, 901))
    assert [e.payload() for e in await log.read(0, 900)] == [
        ActorStopped(reason=f"{i}-{k}") for i in range(300) for k in range(3)
    ]
    assert (await log.verify()).ok


async def test_a_cancelled_caller_leaves_a_whole_log(log: EventLog) -> None:
    """Row 27: cancelled after n steps of the loop, for every n: stored whole, or never begun."""
    for steps in range(12):
        before = log.head.position
        task = asyncio.ensure_future(log.append(some_drafts(3, f"{steps}-"), expected=before))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        # What the next append finds is decided by then, since appends are stored in order.
        for _ in range(3):
            try:
                await log.append([a_draft("after")], expected=log.head.position)
                break
            except LogConflictError:
                continue
        else:
            pytest.fail("the log does not take appends any more")
        assert log.head.position in (before + 1, before + 4)
    assert (await log.verify()).ok
    events = await log.read(0, log.head.position)
    assert [event.position for event in events] == list(range(1, log.head.position + 1))


async def test_a_cancelled_reader_harms_no_one(log: EventLog) -> None:
    await log.append(some_drafts(800), expected=0)
    for steps in range(6):
        task = asyncio.ensure_future(log.read(0, 800))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert len(await log.read(0, 800)) == 800


async def test_appends_go_on_while_readers_and_a_verification_walk(log: EventLog) -> None:
    await log.append(some_drafts(2000), expected=0)

    async def write() -> None:
        for i in range(50):
            await log.append([a_draft()], expected=2000 + i)

    readers = [asyncio.ensure_future(log.read(0, 2000)) for _ in range(10)]
    verification, _ = await asyncio.gather(log.verify(), write())
    pages = await asyncio.gather(*readers)
    assert verification.ok
    assert 2000 <= verification.events <= 2050
    assert all([e.position for e in page] == list(range(1, 2001)) for page in pages)


async def test_a_closed_log_refuses_everything(log: EventLog) -> None:
    await log.append([a_draft()], expected=0)
    await log.close()
    await log.close()
    with pytest.raises(LogError):
        await log.append([a_draft()], expected=1)
    with pytest.raises(LogError):
        await log.read()
    with pytest.raises(LogError):
        await log.of_command("c")
    with pytest.raises(LogError):
        await log.verify()


async def test_closing_stores_what_waits(log: EventLog) -> None:
    appends = [asyncio.ensure_future(log.append([a_draft()], expected=i)) for i in range(20)]
    await asyncio.sleep(0)
    await log.close()
    assert [event.position for (event,) in await asyncio.gather(*appends)] == list(range(1, 21))


async def test_two_logs_have_nothing_in_common(log: EventLog) -> None:
    other = MemoryLog()
    same = draft(ActorStopped(), time=TIME, command_id="c", principal="p")
    (mine,), (theirs,) = await log.append([same], expected=0), await other.append([same], expected=0)
    assert log.log_id != other.log_id
    assert mine.hash != theirs.hash
    await other.close()


async def test_a_verification_goes_on_from_the_last_one_or_begins_anew(log: EventLog) -> None:
    await log.append(some_drafts(700), expected=0)
    whole = await log.verify()
    assert (whole.ok, whole.events, whole.verified_from, whole.head) == (True, 700, 1, log.head)
    assert await log.verify(full=False) == whole
    await log.append(some_drafts(3), expected=700)
    for full in (False, True):
        after = await log.verify(full=full)
        assert (after.ok, after.events, after.verified_from, after.head) == (True, 703, 1, log.head)


async def test_a_verification_against_heads_that_were_witnessed(log: EventLog) -> None:
    genesis = log.head
    events = await log.append(some_drafts(5), expected=0)
    noted = [Head(event.position, event.hash) for event in events]
    assert (await log.verify(heads=[genesis, *noted])).ok
    for heads, first_bad in (
        ([*noted, Head(3, "0" * 64)], 3),
        ([Head(6, "0" * 64)], 6),
        ([Head(9, "0" * 64), Head(2, noted[2].hash)], 2),
        ([Head(0, "0" * 64)], 0),
    ):
        for full in (True, False):
            found = await log.verify(full=full, heads=heads)
            assert (found.ok, found.first_bad, found.verified_from) == (False, first_bad, None)
            assert (found.detail or "").startswith(f"event {first_bad}: ")


async def test_rows_are_what_an_export_is_made_of(log: EventLog) -> None:
    events = await log.append(some_drafts(5), expected=0)
    rows = [Row(*row) for row in await log.rows(1, 3)]
    assert [row.position for row in rows] == [2, 3, 4]
    for row, event in zip(rows, events[1:4], strict=True):
        assert row.salt is not None
        assert row.data == bytes(event.data)
        assert hashlib.sha256(row.salt + row.data).digest() == row.data_hash
        assert row.hash.hex() == event.hash
    assert await log.rows(5, 3) == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", await log.created())
    export = await export_running(log)
    await log.append(some_drafts(1), expected=5)
    tar = b"".join([part async for part in export.parts])
    assert (export.head.position, len(tar)) == (5, export.size)


async def test_the_log_of_an_export_that_is_not_what_was_written(log: EventLog) -> None:
    """A row that changes before the export is refused; one that is erased while it is sent breaks it off."""
    await log.append(some_drafts(5), expected=0)
    rows = [Row(*row) for row in await log.rows(0, 5)]

    class Other:
        """The same log with other rows."""

        def __init__(self, *changed: Row) -> None:
            self.rows_now = list(changed)
            self.log_id, self.head, self.created = log.log_id, log.head, log.created

        async def rows(self, after: int, limit: int) -> list[Row]:
            return self.rows_now[after : after + limit]

    changed = rows[2]._replace(principal="root")
    for wrong, first_bad in (([*rows[:2], changed, *rows[3:]], 3), (rows[:4], 5), ([], 1)):
        with pytest.raises(LogDamagedError) as refused:
            await export_running(Other(*wrong))  # type: ignore[arg-type]  # it has what an export needs
        assert refused.value.fields["first_bad"] == first_bad
    other = Other(*rows)
    export = await export_running(other)  # type: ignore[arg-type]
    other.rows_now[1] = rows[1]._replace(data=None, salt=None)
    with pytest.raises(LogError, match="erased while"):
        async for _ in export.parts:
            pass
