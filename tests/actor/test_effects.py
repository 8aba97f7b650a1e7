"""Effects done with the adapters: reported, cancelled, cleaned up, and what goes wrong in them."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.actor.performer import failed
from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, CancelDownload, Command, Delete, Detach, Import, LoadModel, UnloadModel
from sae_actor.domain.effects import DeleteEffect
from sae_actor.domain.reports import EffectFailed
from sae_actor.domain.state import SaeLocation
from sae_actor.errors import DeviceLostError, InternalError, OutOfMemoryError, SAEInvalidError
from tests.actor.world import LOAD, A, B, get, living, turns, until
from tests.fakes.hub import description

pytestmark = pytest.mark.anyio


async def test_the_whole_script() -> None:
    async with living() as world:
        await world.done(LOAD, get("a"), Import("/saes/demo"), Attach(A))
        assert (len(world.engine.residents), world.engine.model_position) == (1, 2)
        await world.done(Detach(A), Delete(A), UnloadModel())
        await turns()
        assert (world.engine.residents, world.engine.model, world.hub.disk) == ({}, None, {})
        assert set(world.progress) == {"load", "download"}
        assert world.state.commands == {}


async def test_a_cancelled_download_ends_and_leaves_nothing() -> None:
    async with living() as world:
        world.hub.hold("download")
        accepted = await world.submit(get())
        await until(lambda: bool(world.hub.partials))
        clearing = world.hub.hold("discard")
        await world.done(CancelDownload(A))
        ended = asyncio.create_task(world.actor.effect_ended("download", accepted.position))
        await turns()
        assert not ended.done(), "it ends when its files are cleaned up"
        clearing.set()
        await ended
        assert [name for name, _ in world.hub.cancelled] == ["download"]
        assert (world.hub.partials, world.state.saes) == (set(), {})
        await world.actor.effect_ended("download", accepted.position)


async def test_a_new_download_waits_for_the_end_of_the_cancelled_one() -> None:
    async with living() as world:
        gate = world.hub.hold("download")
        clearing = world.hub.hold("discard")
        await world.submit(get())
        await until(lambda: bool(world.hub.partials))
        await world.done(CancelDownload(A))
        again = await world.submit(get())
        gate.set()
        await turns()
        assert world.hub.count("download") == 1
        clearing.set()
        assert (await world.actor.outcome(again.command_id, 5)).status == "completed"
        assert [name for name, _ in world.hub.calls] == ["download", "discard", "download"]


async def test_a_download_cancelled_in_the_turn_that_began_it() -> None:
    async with living() as world:
        await asyncio.gather(world.submit(get()), world.submit(CancelDownload(A)))
        await turns()
        assert world.state.saes == {}
        assert world.hub.partials == set()
        await world.done(get())


async def test_a_cleaning_up_that_fails_is_said_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with living() as world:
        for error in (OSError("https://secret@host"), SAEInvalidError("the folder is gone")):
            world.hub.hold("download")
            world.hub.fail("discard", error)
            accepted = await world.submit(get())
            await turns()
            await world.done(CancelDownload(A))
            await world.actor.effect_ended("download", accepted.position)
        assert "could not be removed: OSError" in caplog.text
        assert "secret" not in caplog.text
        assert "the folder is gone" in caplog.text


async def test_a_detach_does_not_wait_behind_a_download() -> None:
    async with living() as world:
        await world.attached("a")
        world.hub.hold("download")
        await world.submit(get("b"))
        async with asyncio.timeout(0.1):
            await world.done(Detach(A))


async def test_detach_while_attaching() -> None:
    async with living() as world:
        await world.ready("a")
        world.engine.attach_gate = asyncio.Event()
        attach = await world.submit(Attach(A))
        await until(lambda: ("attach", attach.position) in world.engine.calls)
        await world.done(Detach(A))
        outcome = await world.actor.outcome(attach.command_id)
        assert outcome.error is not None
        assert (outcome.status, outcome.error.code) == ("failed", "sae_not_attached")
        assert (world.state.attachments, world.engine.residents) == ((), {})
        world.engine.attach_gate = None
        await world.done(Attach(A))


async def test_an_attach_reported_too_late_is_freed_all_the_same() -> None:
    async with living() as world:
        await world.ready("a")
        world.log.gate = asyncio.Event()
        sending = [asyncio.create_task(world.submit(command)) for command in (Attach(A),)]
        await turns()
        world.log.gate.set()
        await asyncio.gather(*sending)
        world.log.gate = asyncio.Event()
        detach = asyncio.create_task(world.submit(Detach(A)))  # decided while the attach is done already
        await turns()
        world.log.gate.set()
        accepted = await detach
        await world.actor.outcome(accepted.command_id, 5)
        await until(lambda: world.engine.residents == {})
        assert world.state.attachments == ()


async def test_unload_during_a_load_frees_the_model() -> None:
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        loading = await world.submit(LOAD)
        await until(lambda: bool(world.engine.calls))
        await world.done(UnloadModel())
        assert (await world.actor.outcome(loading.command_id)).status == "failed"
        await turns()
        world.engine.load_gate = None
        await world.done(LoadModel("org/other"))
        assert world.engine.model is not None
        assert world.engine.model.model_id == "org/other"


async def test_another_load_overtakes() -> None:
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        first = await world.submit(LOAD)
        await turns()
        second = await world.submit(LoadModel("org/other"))
        world.engine.load_gate.set()
        assert (await world.actor.outcome(second.command_id, 5)).status == "completed"
        assert (await world.actor.outcome(first.command_id)).status == "failed"
        assert world.engine.model_position == second.position


async def test_replace_holds_both_until_the_new_one_is_there() -> None:
    async with living() as world:
        await world.ready("a", "b")
        await world.done(Attach(A))
        world.engine.attach_gate = asyncio.Event()
        replacing = await world.submit(Attach(B, replace=True))
        await turns()
        assert [a.sae_id for a in world.state.attached] == [A]
        world.engine.attach_gate.set()
        outcome = await world.actor.outcome(replacing.command_id, 5)
        assert [event.type for event in outcome.events] == ["AttachRequested", "SaeDetached", "SaeAttached"]
        await until(lambda: set(world.engine.residents) == {replacing.position})


@pytest.mark.parametrize(
    ("operation", "command"),
    [("download", get("b")), ("import_", Import("/saes/demo")), ("delete", Delete(A)), ("locate", Attach(A))],
)
async def test_an_adapter_that_breaks_ends_its_effect_not_the_service(
    operation: str, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    async with living() as world:
        await world.ready("a")
        world.hub.fail(operation, ZeroDivisionError("https://token@secret"))
        outcome = await world.do(command)
        assert outcome.error is not None
        assert (outcome.status, outcome.error.code) == ("failed", "internal")
        assert "secret" not in outcome.error.detail
        assert "failed unexpectedly" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert ("secret" in caplog.text) == (operation != "download")
        await world.done(command)


async def test_a_detach_that_breaks_still_takes_it_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with living() as world:
        await world.attached("a")

        async def broken(*_: object) -> int:
            raise RuntimeError("stuck")

        monkeypatch.setattr(world.engine, "detach", broken)
        outcome = await world.do(Detach(A))
        assert outcome.status == "completed"
        assert world.state.attachments == ()
        assert "detach" in caplog.text


@pytest.mark.parametrize("error", [OutOfMemoryError("8 bytes too many"), SAEInvalidError("not finite", check="finite")])
async def test_a_failed_attach_leaves_nothing(error: OutOfMemoryError | SAEInvalidError) -> None:
    async with living() as world:
        await world.ready("a")
        world.engine.attach_error = error
        outcome = await world.do(Attach(A))
        assert outcome.error == ev.Problem(code=error.code, detail=error.detail, fields=error.fields)
        assert (world.state.attachments, world.engine.residents) == ((), {})
        world.engine.attach_error = None
        await world.done(Attach(A))


async def test_a_lost_device_ends_the_service_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with living() as world:
        await world.ready("a")
        world.engine.attach_error = DeviceLostError("CUDA error")
        await world.submit(Attach(A))
        failure = await asyncio.wait_for(asyncio.shield(world.actor.failure), 5)
        assert isinstance(failure, DeviceLostError)
        await turns()
        assert world.engine.calls.count(("attach", 6)) == 1, "it is not tried again on a lost device"
        assert (await world.types())[-1] == "GpuLost"
        log, hub = world.log, world.hub
    assert (await world.types())[-1] == "GpuLost", "no orderly stop: what it died under is counted"
    async with living(log, hub) as after:
        await after.converged()
        await until(lambda: len(after.state.attached) == 1)
        types = await after.types()
        assert types[types.index("GpuLost") + 1 :][:2] == ["ActorStarted", "EffectInterrupted"]
    assert caplog.text == ""


async def test_a_report_too_large_for_an_event_is_a_failure() -> None:
    async with living() as world:
        world.hub.publish("org/saes", "b", description(d_in=16, warnings=tuple("x" * 1000 for _ in range(300))))
        outcome = await world.do(get("b"))
        assert outcome.error is not None
        assert outcome.error.code == "too_large"
        assert world.hub.count("download") == 1
        await world.done(get("a"))


async def test_every_effect_has_a_failure() -> None:
    location = SaeLocation(source="hub", repository_id="r", commit=None, path=None, files=())
    why = InternalError("x")
    gone = DeleteEffect(request_position=3, sae_id="a", location=location)
    assert failed(gone, why) == EffectFailed(gone, ev.Problem(code="internal", detail="x"))


async def test_a_cancel_that_overtakes_the_report_of_a_download_takes_its_files_away() -> None:
    async with living() as world:
        gate = world.hub.hold("download")
        await world.submit(get())
        await turns()
        world.log.gate = asyncio.Event()
        busy = asyncio.create_task(world.submit(LOAD))
        await turns()
        cancelling = asyncio.create_task(world.submit(CancelDownload(A)))
        await turns()
        gate.set()
        await until(lambda: len(world.actor.mailbox) == 2)  # the cancel, and behind it the report
        world.log.gate.set()
        await asyncio.gather(busy, cancelling)
        await until(lambda: world.hub.count("discard") == 1)
        await world.idle()
        assert A not in world.state.saes
        assert "DownloadCompleted" not in await world.types()
