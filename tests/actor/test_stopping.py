"""The end in order: who waits is answered, what was done is on record, what is owed is taken up at the next start."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.commands import Attach, CancelDownload, Detach
from sae_actor.domain.events import GenerationFinished
from sae_actor.errors import DrainingError, LogError, NotReadyError, SAEError
from tests.actor.world import LOAD, A, begin, get, living, turns, until, waits_for_its_units

pytestmark = pytest.mark.anyio


async def test_the_stop_is_the_last_event() -> None:
    async with living() as world:
        await world.attached("a")
        await world.actor.stop("signal")
        assert (await world.types())[-1] == "ActorStopped"
        assert b'"signal"' in bytes((await world.events())[-1].data)
        head = world.log.head
        with pytest.raises(DrainingError):
            await world.submit(Detach(A))
        await world.actor.stop()
        assert world.log.head == head


async def test_stop_answers_what_waits() -> None:
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        loading = await world.submit(LOAD)
        outcome = asyncio.create_task(world.actor.outcome(loading.command_id, 300))
        await turns()
        world.log.gate = asyncio.Event()
        decided = asyncio.create_task(world.submit(get("b")))
        await turns()
        waiting = [asyncio.create_task(world.submit(get("a"))) for _ in range(5)]
        await turns()
        stopping = asyncio.create_task(world.actor.stop())
        await turns()
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, DrainingError) for each in refused)
        world.log.gate.set()
        await stopping
        assert (await decided).position == 3, "what was being stored is stored"
        assert (await outcome).status == "accepted"
        assert (await world.actor.outcome(loading.command_id, 300)).status == "accepted"
        assert (await world.types())[-1] == "ActorStopped"
        assert world.hub.calls == [], "nothing begins any more"


async def test_a_report_that_is_in_goes_on_record() -> None:
    async with living() as world:
        await world.ready("a")
        world.log.gate = asyncio.Event()
        blocker = asyncio.create_task(world.submit(LOAD))
        await turns()
        attach = asyncio.create_task(world.submit(Attach(A)))
        told = world.actor.report(
            GenerationFinished(generation_id="g", started_position=1, finish_reason="stop", intervention_sha256="x")
        )
        stopping = asyncio.create_task(world.actor.stop())
        await turns()
        world.log.gate.set()
        await stopping
        await blocker
        with pytest.raises(DrainingError):
            await attach
        assert await told == ()
        with pytest.raises(NotReadyError):
            await world.actor.report(
                GenerationFinished(generation_id="g", started_position=1, finish_reason="stop", intervention_sha256="")
            )


async def test_effects_under_way_are_cancelled_and_taken_up_again_uncounted() -> None:
    async with living() as world:
        world.hub.hold("download")
        download = await world.submit(get())
        await until(lambda: bool(world.hub.partials))
        await world.actor.stop()
        assert [name for name, _ in world.hub.cancelled] == ["download"]
        assert world.hub.count("discard") == 0, "it is still wanted"
        log, hub = world.log, world.hub
    hub._gates.clear()
    async with living(log, hub) as after:
        assert (await after.actor.outcome(download.command_id, 5)).status == "completed"
        assert "EffectInterrupted" not in await after.types()


async def test_what_is_being_cleaned_up_is_cleaned_up() -> None:
    async with living() as world:
        world.hub.hold("download")
        gate = world.hub.hold("discard")
        await world.submit(get())
        await until(lambda: bool(world.hub.partials))
        await world.submit(CancelDownload(A))
        await until(lambda: world.hub.count("discard") == 1)
        stopping = asyncio.create_task(world.actor.stop())
        await turns()
        assert not stopping.done()
        gate.set()
        await stopping
        assert world.hub.partials == set()


async def test_a_stop_that_cannot_be_recorded() -> None:
    async with living() as world:
        world.log.append_error = LogError("EIO")
        await world.actor.stop()
        assert world.actor.failure.done()
        with pytest.raises(SAEError):
            await world.submit(LOAD)
    assert (await world.types())[-1] == "ActorStarted"


async def test_a_stop_before_the_start_and_a_stop_of_the_dead() -> None:
    world = await begin()
    await world.kill()
    await asyncio.wait_for(world.actor.stop(), 5)
    with pytest.raises(SAEError):
        await asyncio.wait_for(world.submit(LOAD), 5)


async def test_what_waited_for_its_units_is_answered_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with living() as world:
        await world.attached("a")
        waiting, go = await waits_for_its_units(world, monkeypatch)
        await world.actor.stop()
        go.set()
        with pytest.raises(DrainingError):
            await asyncio.wait_for(waiting, 5)
