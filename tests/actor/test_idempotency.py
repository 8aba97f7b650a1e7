"""Idempotency keys: one effect, one set of events, one answer, for the life of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from sae_actor.actor.history import accepted_events, with_outcome
from sae_actor.domain.commands import Attach, Command, Detach, Steer, UnloadModel
from sae_actor.domain.events import Event
from sae_actor.domain.refs import Edit
from sae_actor.errors import IdempotencyKeyReusedError, SAENotAttachedError, SAENotFoundError
from sae_actor.eventlog import SqliteLog
from tests.actor.world import LOAD, A, B, begin, get, living, shelves, turns

pytestmark = pytest.mark.anyio


async def test_one_after_the_other() -> None:
    """Row 28, one after the other."""
    async with living() as world:
        first = await world.submit(get(), key="k")
        await world.actor.outcome(first.command_id, 5)
        head = world.state.position
        again = await world.submit(get(), key="k")
        assert (again.command_id, again.position) == (first.command_id, first.position)
        assert world.state.position == head
        outcome = await world.actor.outcome(again.command_id)
        assert (outcome.status, outcome.position) == ("completed", first.position)
        assert world.hub.count("download") == 1


@pytest.mark.parametrize("hold", [False, True])
async def test_fifty_at_once(hold: bool) -> None:
    """Row 28, fifty at once: one effect, one set of events, one answer."""
    async with living() as world:
        if hold:
            world.log.gate = asyncio.Event()
        sending = [asyncio.create_task(world.submit(LOAD, key="k")) for _ in range(50)]
        await turns()
        if world.log.gate is not None:
            world.log.gate.set()
        answers = await asyncio.gather(*sending)
        assert {(each.command_id, each.position) for each in answers} == {(answers[0].command_id, 2)}
        assert (await world.types()).count("ModelLoadRequested") == 1
        assert world.engine.calls == [("load_model", 2)]


async def test_another_command_under_the_same_key() -> None:
    """Row 29."""
    async with living() as world:
        accepted = await world.submit(get("a"), key="k")
        for other in (get("b"), get("a", force=True), LOAD, UnloadModel()):
            with pytest.raises(IdempotencyKeyReusedError):
                await world.submit(other, key="k")
        assert [e.type for e in (await world.actor.outcome(accepted.command_id, 5)).events] == [
            "DownloadRequested", "DownloadCompleted",
        ]  # fmt: skip
        assert (await world.submit(get("a"), key="k")).position == accepted.position


async def test_two_commands_under_one_key_in_one_transaction() -> None:
    async with living() as world:
        world.log.gate = asyncio.Event()
        blocker = asyncio.create_task(world.submit(LOAD))
        await turns()
        sending = [asyncio.create_task(world.submit(get(path), key="k")) for path in ("a", "b", "a")]
        await turns()
        world.log.gate.set()
        first, other, again = await asyncio.gather(*sending, return_exceptions=True)
        await blocker
        assert isinstance(other, IdempotencyKeyReusedError)
        assert first == again


async def test_a_key_is_one_principals() -> None:
    async with living() as world:
        mine = await world.submit(get("a"), key="k", principal="me")
        yours = await world.submit(get("b"), key="k", principal="you")
        assert mine.command_id != yours.command_id


async def test_without_a_key_each_is_its_own() -> None:
    async with living() as world:
        answers = [await world.submit(get()) for _ in range(3)]
        assert len({each.command_id for each in answers}) == 3


async def test_a_refusal_is_not_remembered() -> None:
    async with living() as world:
        with pytest.raises(SAENotFoundError):
            await world.submit(Attach(A), key="k")
        await world.ready("a")
        accepted = await world.submit(Attach(A), key="k")
        assert (await world.actor.outcome(accepted.command_id, 5)).status == "completed"
        types = [event.type for event in await world.log.of_command(accepted.command_id)]
        assert types == ["CommandRejected", "AttachRequested", "SaeAttached"]


async def test_the_answer_of_then_also_where_it_would_be_refused_now() -> None:
    async with living() as world:
        await world.attached("a")
        steer = Steer(A, (Edit(3, 7.0),))
        accepted = await world.actor.submit(steer, principal="me", key="k", expected_revision=world.state.revision)
        await world.done(Detach(A))
        with pytest.raises(SAENotAttachedError):
            await world.submit(steer)
        again = await world.actor.submit(steer, principal="me", key="k", expected_revision=1)
        assert (again.command_id, again.position) == (accepted.command_id, accepted.position)


async def test_a_command_whose_first_turn_ends_another() -> None:
    """UnloadModel during a load ends the load: its own intent is still its first event."""
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        loading = await world.submit(LOAD)
        sending = [asyncio.create_task(world.submit(UnloadModel(), key="k")) for _ in range(2)]
        first, second = await asyncio.gather(*sending)
        assert first == second
        outcome = await world.actor.outcome(first.command_id)
        assert (outcome.status, outcome.position, outcome.events[0].type) == (
            "completed", first.position, "ModelUnloaded",
        )  # fmt: skip
        assert (await world.actor.outcome(loading.command_id)).status == "failed"
        assert (await world.submit(UnloadModel(), key="k")).position == first.position


@pytest.mark.parametrize("crash", [False, True])
async def test_after_a_restart(tmp_path: Path, crash: bool) -> None:
    """Row 28, after a restart, in order or not."""
    log, hub = await SqliteLog.open(tmp_path), shelves()
    world = await begin(log, hub)
    await world.done(LOAD, get("a"))
    attach = await world.submit(Attach(A), key="attach")
    refused: Command = Steer(B, ())
    with pytest.raises(SAENotFoundError):
        await world.submit(refused, key="steer")
    await (world.kill() if crash else world.actor.stop())
    await log.close()

    log = await SqliteLog.open(tmp_path)
    async with living(log, hub) as world:
        again = await world.submit(Attach(A), key="attach")
        assert (again.command_id, again.position) == (attach.command_id, attach.position)
        assert (await world.actor.outcome(again.command_id, 5)).status == "completed"
        with pytest.raises(IdempotencyKeyReusedError):
            await world.submit(Attach(B), key="attach")
        await world.converged()
        assert len(world.engine.residents) == 1
    await log.close()


async def test_a_refused_repeat_in_the_turn_that_closes_the_command_is_not_part_of_it() -> None:
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        loading = await world.submit(LOAD, key="k")
        waiting = asyncio.create_task(world.actor.outcome(loading.command_id, 5, loading))
        await turns()
        world.log.gate = asyncio.Event()
        first = asyncio.create_task(world.submit(LOAD))
        await turns()
        other = asyncio.create_task(world.submit(UnloadModel(), key="k"))
        world.engine.load_gate.set()
        await turns()
        world.log.gate.set()
        with pytest.raises(IdempotencyKeyReusedError):
            await other
        await first
        assert [event.type for event in (await waiting).events] == ["ModelLoadRequested", "ModelLoaded"]
        assert (await waiting) == await world.actor.outcome(loading.command_id)


async def test_the_end_of_a_joined_request_is_looked_for_near_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a page of outcomes, which may be all that came since."""
    async with living() as world:
        gate = world.hub.hold("download")
        first = await world.submit(get(), key="k")
        joined = await world.submit(get(), key="j")
        gate.set()
        await world.actor.outcome(first.command_id, 5)
        asked: list[tuple[int, int]] = []
        read = world.log.read

        async def noted(after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
            asked.append((after, limit))
            return await read(after, limit, types)

        monkeypatch.setattr(world.log, "read", noted)
        # As after a restart, when nothing of it is in memory.
        events = await with_outcome(world.log, await accepted_events(world.log, joined.command_id))
        assert [event.type for event in events] == ["DownloadRequested", "DownloadCompleted"]
        assert asked[0] == (first.position, 1)
        assert len(asked) <= 3
