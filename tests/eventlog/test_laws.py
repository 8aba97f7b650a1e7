"""Whatever is appended, however it is cut into appends and restarts: one chain, every event once, in order."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sae_actor.domain.events import Draft
from sae_actor.errors import LogConflictError
from sae_actor.eventlog import SqliteLog, events_of, verify_folder
from sae_actor.ports import EventLog
from tests.eventlog.making import a_draft, shown
from tests.fakes.log import MemoryLog

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
drafts = st.builds(a_draft, texts, st.none() | texts, texts)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(drafts, max_size=5)),
        st.tuples(st.just("together"), st.lists(st.lists(drafts, max_size=3), min_size=1, max_size=4)),
        st.just(("reopen", None)),
        st.just(("kill", None)),
        st.tuples(st.just("conflict"), drafts),
        st.tuples(st.just("cancel"), st.tuples(drafts, st.integers(0, 8))),
    ),
    max_size=12,
)


async def append_together(log: EventLog, parts: list[list[Draft]]) -> None:
    at = log.head.position
    appends = []
    for part in parts:
        appends.append(log.append(part, expected=at))
        at += len(part)
    await asyncio.gather(*appends)


async def append_cancelled(log: EventLog, draft: Draft, steps: int) -> bool:
    """Stored, although its caller went."""
    before = log.head.position
    task = asyncio.ensure_future(log.append([draft], expected=before))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await log.read(0, 1)
    try:
        await log.append([], expected=before)
    except LogConflictError:
        return True
    return log.head.position > before


async def conflicts(log: EventLog, draft: Draft) -> None:
    for expected in (log.head.position - 1, log.head.position + 1):
        try:
            await log.append([draft], expected=expected)
        except LogConflictError:
            continue
        raise AssertionError(f"an append after {expected} was stored at {log.head.position}")


@settings(max_examples=40, deadline=None)
@given(steps)
def test_any_sequence_of_appends_and_restarts_gives_one_chain(script: list[tuple[str, object]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            await follow(Path(folder), script)

    asyncio.run(run())


async def follow(folder: Path, script: list[tuple[str, object]]) -> None:
    """The log on disk and a list of drafts beside it go through the script."""
    log = await SqliteLog.open(folder)
    told: list[Draft] = []
    hashes: list[str] = []
    for action, argument in script:
        match action, argument:
            case "append", list():
                await log.append(argument, expected=len(told))
                told += argument
            case "together", list():
                await append_together(log, argument)
                told += [draft for part in argument for draft in part]
            case "conflict", Draft():
                await conflicts(log, argument)
            case "cancel", (Draft() as draft, int() as steps):
                if await append_cancelled(log, draft, steps):
                    told.append(draft)
            case "kill", _:
                # Between two appends: the files as they are, without a close.
                kept = Path(tempfile.mkdtemp(dir=folder))
                copy = await asyncio.create_subprocess_exec(
                    "cp", *(str(folder / name) for name in ("events.db", "events.db-wal", "head.checkpoint")), str(kept)
                )
                await copy.wait()
                await log.close()
                for name in os.listdir(kept):
                    (kept / name).replace(folder / name)
                log = await SqliteLog.open(folder)
            case _:
                await log.close()
                log = await SqliteLog.open(folder)
        events = await log.read(0, len(told) + 1)
        assert [event.hash for event in events][: len(hashes)] == hashes
        hashes = [event.hash for event in events]
        assert [bytes(event.data) for event in events] == [bytes(draft.data) for draft in told]
        assert [event.position for event in events] == list(range(1, len(told) + 1))
    events = await log.read(0, len(told))
    assert (await log.verify()).ok
    await log.close()
    assert shown([event async for event in events_of(folder)]) == shown(events)
    verification = await verify_folder(folder)
    assert (verification.ok, verification.events) == (True, len(told))


@settings(max_examples=60, deadline=None)
@given(st.lists(drafts, min_size=1, max_size=12), st.data())
def test_reading_is_slicing(told: list[Draft], data: st.DataObject) -> None:
    after = data.draw(st.integers(-2, len(told) + 2))
    limit = data.draw(st.integers(0, len(told) + 2))
    commands = {draft.command_id for draft in told if draft.command_id is not None}

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            disk = await SqliteLog.open(Path(folder))
            for log in (disk, MemoryLog()):
                assert isinstance(log, SqliteLog | MemoryLog)
                events = await log.append(told, expected=0)
                assert shown(await log.read(after, limit)) == shown(events[max(after, 0) :][:limit])
                for command_id in commands:
                    expected = [event for event in events if event.command_id == command_id]
                    assert shown(await log.of_command(command_id)) == shown(expected)
                await log.close()

    asyncio.run(run())
