"""Generations that something ends: a detach, a reader that gives up, a stop, a fault."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.commands import Attach, Detach, Monitor, Steer, UnloadModel
from sae_actor.domain.refs import Edit
from sae_actor.errors import (
    DeviceLostError,
    DiskFullError,
    InternalError,
    ModelNotLoadedError,
    NotReadyError,
    SAEError,
)
from tests.actor.world import LOAD, A, B, begin, get, living, turns, until
from tests.generations.test_records import ends, open_text

pytestmark = pytest.mark.anyio


async def test_a_detach_right_behind_an_admission_waits_for_the_text() -> None:
    """They become durable together: the text is on the device before anything is taken from it."""
    async with living() as world:
        world.actor.performer._drain_seconds = 5.0
        await world.attached("a")
        await world.done(Steer(A, (Edit(3, 7.0),)))
        world.log.gate = asyncio.Event()
        first = asyncio.create_task(world.submit(Monitor(A, enabled=True)))
        await turns()
        opening = asyncio.create_task(open_text(world))
        await turns()
        detaching = asyncio.create_task(world.submit(Detach(A)))
        await turns()
        world.log.gate.set()
        text = await opening
        assert (await text.result()).finished.reason == "length"
        detached = await world.actor.outcome((await detaching).command_id, 5)
        assert (detached.status, world.state.attachments, world.engine.residents) == ("completed", (), {})
        await first


async def test_nor_is_what_a_replacement_drops_taken_from_a_text_before_it() -> None:
    async with living() as world:
        await world.attached("a")
        await world.done(get("b"), Steer(A, (Edit(3, 7.0),)))
        world.engine.attach_gate = asyncio.Event()
        replacing = await world.submit(Attach(B, replace=True))
        await turns()
        world.log.gate = asyncio.Event()
        first = asyncio.create_task(world.submit(Monitor(A, enabled=True)))
        await turns()
        opening = asyncio.create_task(open_text(world))
        await turns()
        world.engine.attach_gate.set()  # its report comes behind the admission
        await turns()
        world.log.gate.set()
        assert (await (await opening).result()).finished.reason == "length"
        assert (await world.actor.outcome(replacing.command_id, 5)).status == "completed"
        await first


async def test_abandoned_before_it_began() -> None:
    async with living() as world:
        await world.ready()
        world.engine.text_gate = asyncio.Event()
        text = await open_text(world)
        text.abandon()
        assert (await text.result()).finished.reason == "cancelled"
        text.abandon()
        assert [end.finish_reason for end in await ends(world)] == ["cancelled"]


async def test_abandoned_while_its_end_is_being_stored() -> None:
    async with living() as world:
        await world.ready()
        text = await open_text(world)
        world.log.gate = asyncio.Event()
        await turns(50)
        text.abandon()
        closing = asyncio.create_task(world.texts.close())
        await turns()
        assert not closing.done(), "the end is not on record yet"
        world.log.gate.set()
        await closing
        assert [end.finish_reason for end in await ends(world)] == ["length"]


async def test_close_ends_what_runs_and_what_is_being_admitted() -> None:
    async with living() as world:
        await world.ready()
        world.engine.text_gate = asyncio.Event()
        running = [await open_text(world) for _ in range(3)]
        world.log.gate = asyncio.Event()
        opening = asyncio.create_task(open_text(world))
        await turns()
        closing = asyncio.create_task(world.texts.close())
        await turns()
        world.log.gate.set()
        await closing
        for text in [*running, await opening]:
            with pytest.raises(NotReadyError, match="stopping"):
                await text.result()
        assert [end.finish_reason for end in await ends(world)] == ["cancelled"] * 4


async def test_stop_after_close_leaves_no_text_open() -> None:
    world = await begin()
    await world.ready()
    world.engine.text_gate = asyncio.Event()
    await open_text(world)
    await world.texts.close()
    await world.actor.stop()
    assert (await world.types())[-2:] == ["GenerationFinished", "ActorStopped"]
    await world.check()


async def test_a_fault_of_the_hook_fails_the_text_and_takes_the_sae_out() -> None:
    async with living() as world:
        await world.attached("a")
        await world.done(Steer(A, (Edit(3, 7.0),)))
        position = world.state.attached[0].request_position
        world.engine.faults[position] = 2
        with pytest.raises(InternalError):
            await (await open_text(world)).result()
        await until(lambda: world.state.attachments == ())
        await until(lambda: world.engine.residents == {})
        types = await world.types()
        assert types.index("HookFaulted") < types.index("SaeDetached")
        (end,) = await ends(world)
        assert (end.finish_reason, end.error is not None) == ("error", True)
        await world.done(Attach(A))


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), InternalError("broken")])
async def test_an_engine_that_breaks(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async with living() as world:
        await world.ready()

        def broken(_: object) -> object:
            raise error

        monkeypatch.setattr(world.engine, "generate", broken)
        with pytest.raises(InternalError) as raised:
            await (await open_text(world)).result()
        assert "secret" not in raised.value.detail
        assert [end.finish_reason for end in await ends(world)] == ["error"]


async def test_a_lost_device_ends_texts_and_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async with living() as world:
        await world.ready()

        def lost(_: object) -> object:
            raise DeviceLostError("CUDA error")

        monkeypatch.setattr(world.engine, "generate", lost)
        texts = [await open_text(world) for _ in range(3)]
        for text in texts:
            with pytest.raises(DeviceLostError):
                await text.result()
        assert isinstance(await asyncio.wait_for(asyncio.shield(world.actor.failure), 5), DeviceLostError)
        assert len(await ends(world)) == 3
        assert (await world.types()).count("GpuLost") == 1, "one loss, however many notice it"


async def test_an_end_that_finds_no_space_is_not_given_out() -> None:
    async with living() as world:
        await world.ready()
        text = await open_text(world)
        world.log.append_error = DiskFullError("no space")
        with pytest.raises(SAEError) as raised:
            await text.result()
        assert raised.value.code == "disk_full"
        log, hub = world.log, world.hub
    log.append_error = None
    async with living(log, hub) as after:
        assert [end.finish_reason for end in await ends(after)] == ["interrupted"]


async def test_detach_and_unload_end_what_uses_them() -> None:
    async with living() as world:
        await world.attached("a")
        await world.done(Steer(A, (Edit(3, 7.0),)))
        world.engine.text_gate = asyncio.Event()
        steered, bare = await open_text(world), await open_text(world, baseline=True)
        await turns()
        await world.done(Detach(A))
        assert (await steered.result()).finished.reason == "intervention_removed"
        await world.done(UnloadModel())
        with pytest.raises(ModelNotLoadedError):
            await bare.result()
        world.engine.text_gate = None
        await world.done(LOAD)
        assert (await (await open_text(world)).result()).finished.reason == "length"
