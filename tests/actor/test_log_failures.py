"""A log that cannot be written: nothing is claimed that is not on record, and what can be read still is."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from sae_actor.actor import Accepted
from sae_actor.domain.commands import Attach, Detach, Steer
from sae_actor.domain.events import GenerationFinished
from sae_actor.domain.refs import Edit
from sae_actor.errors import DiskFullError, InternalError, LogError, ReadOnlyError
from sae_actor.eventlog import SqliteLog
from tests.actor.world import LOAD, A, begin, get, living, shelves, turns, until, waits_for_its_units
from tests.eventlog.making import bounded

pytestmark = pytest.mark.anyio

FULL = DiskFullError("no space for the event log; nothing was stored")


async def test_a_full_disk_leaves_a_service_that_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    async with living() as world:
        await world.attached("a")
        before = world.state
        world.log.append_error = FULL
        with pytest.raises(DiskFullError):
            await world.submit(Steer(A, (Edit(3, 7.0),)))
        assert world.actor.read_only is not None
        assert world.state is before
        world.log.append_error = None
        with pytest.raises(ReadOnlyError):
            await world.submit(Detach(A))
        with pytest.raises(ReadOnlyError):
            await world.actor.report(
                GenerationFinished(generation_id="x", started_position=1, finish_reason="stop", intervention_sha256="")
            )
        assert len(world.engine.residents) == 1, "what is attached stays"
        assert not world.actor.failure.done()
        outcome = await world.actor.outcome((await world.events())[1].command_id or "", 5)
        assert outcome.status == "completed"
        async for page in world.actor.broadcast.read(0):
            assert page is not None
            if page.after == before.position:
                break
    assert "cannot be written" in caplog.text


async def test_the_effect_of_an_outcome_that_found_no_space_is_undone() -> None:
    async with living() as world:
        await world.ready("a")
        world.engine.attach_gate = asyncio.Event()
        attach = await world.submit(Attach(A))
        waiting = asyncio.create_task(world.actor.outcome(attach.command_id, 5))
        await turns()
        world.log.append_error = FULL
        world.engine.attach_gate.set()
        await until(lambda: world.actor.read_only is not None)
        await until(lambda: world.engine.residents == {})
        assert (await waiting).status == "accepted", "who waits is told that it is still open"
        assert world.state.attached == ()
        assert (await world.actor.outcome(attach.command_id, 5)).status == "accepted"
        log, hub = world.log, world.hub
    log.append_error = None
    async with living(log, hub) as after:
        assert (await after.actor.outcome(attach.command_id, 5)).status == "completed"
        assert len(after.engine.residents) == 1


async def test_a_download_under_way_is_stopped_with_it() -> None:
    async with living() as world:
        world.hub.hold("download")
        await world.submit(get("a"))
        await until(lambda: bool(world.hub.partials))
        world.log.append_error = FULL
        with pytest.raises(DiskFullError):
            await world.submit(LOAD)
        await until(lambda: world.hub.partials == set())
        assert world.engine.calls == []


async def test_all_who_wait_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """In the turn that fails and behind it; also who would have been refused: it may rest on what was not stored."""
    async with living() as world:
        world.log.gate = asyncio.Event()
        commands = [LOAD, *(Attach(A) for _ in range(100)), get("a")]
        sending = [asyncio.create_task(world.submit(command)) for command in commands]
        await turns()
        world.log.append_error = FULL
        world.log.gate.set()
        errors = await asyncio.gather(*sending, return_exceptions=True)
        assert {type(error) for error in errors} == {DiskFullError, ReadOnlyError}
        assert errors[0] is FULL
    assert "never retrieved" not in caplog.text


async def test_a_repeated_key_is_answered_in_the_turn_that_finds_no_space() -> None:
    async with living() as world:
        accepted = await world.submit(LOAD, key="k")
        await world.actor.outcome(accepted.command_id, 5)
        world.log.gate = asyncio.Event()
        blocker = asyncio.create_task(world.submit(LOAD))
        await turns()
        sending = [asyncio.create_task(world.submit(LOAD, key="k")), asyncio.create_task(world.submit(get("a")))]
        await turns()
        world.log.append_error, world.log.sound = FULL, 1
        world.log.gate.set()
        await blocker
        again, refused = await asyncio.gather(*sending, return_exceptions=True)
        assert refused is FULL
        assert isinstance(again, Accepted)
        assert (again.command_id, again.position) == (accepted.command_id, accepted.position)


async def test_an_io_failure_ends_the_service() -> None:
    async with living() as world:
        await world.attached("a")
        world.log.append_error = LogError("events.db could not be written (EIO)")
        with pytest.raises(LogError):
            await world.submit(Detach(A))
        failure = await asyncio.wait_for(asyncio.shield(world.actor.failure), 5)
        assert (type(failure), failure.detail) == (LogError, "events.db could not be written (EIO)")
        world.log.append_error = None
        appends = world.log.appends
        with pytest.raises(ReadOnlyError):
            await world.submit(Detach(A))
        await world.actor.stop()
        assert world.log.appends == appends, "nothing is tried again, not even the stop"


async def test_a_log_that_cannot_be_read_ends_the_service_too() -> None:
    async with living() as world:
        world.log.read_error = LogError("events.db could not be read (EIO)")
        with pytest.raises(LogError):
            await world.submit(LOAD, key="k")
        assert isinstance(await asyncio.wait_for(asyncio.shield(world.actor.failure), 5), LogError)
        world.log.read_error = None


@pytest.mark.parametrize("where", ["append", "engine"])
async def test_a_fault_in_the_writer_itself_ends_the_service_and_leaves_no_one_waiting(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with living() as world:
        if where == "append":
            world.log.append_error = ZeroDivisionError()
        else:
            monkeypatch.setattr(world.engine, "retain", lambda _: 1 / 0)
        with pytest.raises(InternalError):
            await asyncio.wait_for(world.submit(LOAD), 5)
        assert isinstance(await asyncio.wait_for(asyncio.shield(world.actor.failure), 5), InternalError)
        with pytest.raises(ReadOnlyError):
            await world.submit(LOAD)
        assert "ZeroDivisionError" in caplog.text
        world.log.append_error = None


async def test_a_start_on_a_full_disk_is_a_service_that_can_be_read() -> None:
    async with living() as world:
        await world.attached("a")
        log, hub = world.log, world.hub
    head = log.head
    log.append_error = FULL
    after = await begin(log, hub)
    assert after.actor.read_only is not None
    assert (log.head, after.state.position) == (head, head.position)
    assert after.engine.calls == [], "nothing is begun that cannot be put on record"
    await after.actor.stop()


async def test_a_start_that_fails() -> None:
    async with living() as world:
        log = world.log
    log.append_error = LogError("EIO")
    with pytest.raises(LogError):
        await begin(log)


async def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """Row 12: 507, nothing stored, reads go on; with space again a start finds everything."""
    log, hub = await bounded(await SqliteLog.open(tmp_path), 200_000), shelves()
    async with living(log, hub) as world:
        await world.attached("a")
        edits = tuple(Edit(i, 1.5) for i in range(32))
        last = None
        while world.actor.read_only is None:
            with contextlib.suppress(DiskFullError):
                last = await world.submit(Steer(A, edits))
        assert last is not None
        assert world.log.head.position == last.position
        assert world.state.attached[0].steering == edits
    await log.close()
    log = await SqliteLog.open(tmp_path)
    async with living(log, hub) as world:
        await world.converged()
        assert world.state.attached[0].steering == edits
    await log.close()


async def test_a_log_that_another_has_written_to_is_left_alone() -> None:
    async with living() as world:
        other = await begin(world.log.inner, world.hub)  # a second writer on the same log
        with pytest.raises(LogError):
            await world.submit(LOAD)
        assert world.actor.failure.done()
        await other.actor.stop()
        await world.actor.stop()
        world.actor.state = other.state


async def test_what_waited_for_its_units_when_the_disk_was_full_is_not_written_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with living() as world:
        await world.attached("a")
        waiting, go = await waits_for_its_units(world, monkeypatch)
        world.log.append_error = DiskFullError("no space")
        with pytest.raises(DiskFullError):
            await world.submit(Steer(A, (Edit(2, 1.0),)))
        world.log.append_error = None  # there is space again, and the service stays what it said it is
        before = world.state.position
        go.set()
        with pytest.raises(ReadOnlyError):
            await asyncio.wait_for(waiting, 5)
        assert world.state.position == before
