"""The device thread goes on, whatever its jobs and steps raise; and where it cannot, everyone is told."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import Edit
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding import kv_cache, scheduler
from sae_actor.engine.interventions.hooks import PreparedIntervention
from sae_actor.errors import DeviceLostError, ModelNotLoadedError
from tests.engine.asking import active, attach, finished, load, no_progress, request

pytestmark = pytest.mark.anyio

IDS = (1, 2, 3, 4, 5)
LOST = RuntimeError("CUDA error: device-side assert triggered")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


@pytest.fixture
async def impatient(engine: TorchEngine) -> AsyncIterator[TorchEngine]:
    """Whoever would wait for ever fails instead."""
    async with asyncio.timeout(20):
        yield engine


async def lost(engine: TorchEngine) -> bool:
    """Whether everything is refused because the device is lost, and nothing hangs."""
    with pytest.raises(DeviceLostError):
        engine.generate(request(IDS))
    with pytest.raises(DeviceLostError):
        await engine.raw(5, ())
    return engine._device.lost is not None


async def test_texts_behind_an_unload_end_and_another_model_can_come(impatient: TorchEngine, tiny_llama: Path) -> None:
    go = threading.Event()
    busy = asyncio.create_task(impatient._device.run(lambda: go.wait(5), "a long step"))
    await asyncio.sleep(0)
    impatient.retain(Residents(model=None))
    await asyncio.sleep(0)  # its job is in the inbox, and the model is still there for the event loop
    asked = [asyncio.create_task(finished(impatient, request(IDS))) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    assert [(end.reason, end.error_code) for end in await asyncio.gather(*asked)] == [("error", "model_not_loaded")] * 3
    await busy
    with pytest.raises(ModelNotLoadedError):
        impatient.generate(request(IDS))
    await impatient.load_model(load(str(tiny_llama), 2), no_progress)
    assert (await finished(impatient, request(IDS))).reason == "length"


async def test_texts_and_unloads_in_any_order(impatient: TorchEngine, tiny_llama: Path) -> None:
    """Texts are asked for all the time, as the model goes and comes."""
    ends: list[str] = []
    stop = False

    async def ask() -> None:
        while not stop:
            try:
                ends.append((await finished(impatient, request(IDS, tokens=3))).error_code or "made")
            except ModelNotLoadedError:
                await asyncio.sleep(0.001)

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for at in range(2, 14):
        await asyncio.sleep(0.004 * (at % 5))
        impatient.retain(Residents(model=None))
        await impatient.load_model(load(str(tiny_llama), at), no_progress)
    stop = True
    await asyncio.gather(*asking)
    assert set(ends) <= {"made", "model_not_loaded"}
    assert (await finished(impatient, request(IDS))).reason == "length"


@pytest.mark.parametrize("times", [1, 2])
async def test_a_choice_that_finds_the_memory_full(
    impatient: TorchEngine, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Behind the forward pass, where the device is waited for. Once: it is tried again for each text."""
    alone = await finished(impatient, request(IDS, tokens=6))
    raised = _fail_once(monkeypatch, scheduler, "choose_all", FULL, times)
    first, second = await asyncio.gather(*(finished(impatient, request(IDS, tokens=6)) for _ in range(2)))
    assert raised() == times
    if times == 2:
        assert (first.reason, first.error_code) == ("error", "out_of_memory")
    else:
        assert first.token_ids == alone.token_ids
    assert second.token_ids == alone.token_ids
    assert (await finished(impatient, request(IDS, tokens=6))).token_ids == alone.token_ids


async def test_a_device_that_is_lost_when_a_token_is_chosen(
    impatient: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_once(monkeypatch, scheduler, "choose_all", LOST, 1)
    ends = await asyncio.gather(*(finished(impatient, request(IDS)) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [DeviceLostError] * 3
    assert await lost(impatient)


async def test_counting_what_was_written_that_fails_ends_its_text(
    impatient: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No `HookFault`, but any error."""
    await impatient.attach(attach(5), str(tiny_sae))
    _fail_once(monkeypatch, PreparedIntervention, "read_into", ValueError("secret"), 1)
    steered = active(5, Edit(feature=3, strength=5.0))
    bare, failed = await asyncio.gather(finished(impatient, request(IDS)), finished(impatient, request(IDS, steered)))
    assert (bare.reason, failed.reason, failed.error_code) == ("length", "error", "internal")
    assert "secret" not in (failed.error_detail or "")
    assert (await finished(impatient, request(IDS, steered))).reason == "length"


@pytest.mark.parametrize(("raised", "dies"), [(FULL, False), (ValueError("odd"), False), (LOST, True)])
async def test_freeing_a_texts_room_that_fails(
    impatient: TorchEngine, monkeypatch: pytest.MonkeyPatch, raised: Exception, dies: bool
) -> None:
    _fail_once(monkeypatch, kv_cache.KVCachePool, "release", raised, 1)
    assert (await finished(impatient, request(IDS, tokens=2))).reason == "length"
    if dies:
        with pytest.raises(DeviceLostError):
            await finished(impatient, request(IDS))
        assert await lost(impatient)
    else:
        assert (await finished(impatient, request(IDS))).reason == "length"


@pytest.mark.parametrize("where", ["step", "admit"])
async def test_an_error_that_nobody_foresaw_ends_the_texts_there_are(
    impatient: TorchEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    with caplog.at_level(logging.CRITICAL, "sae_actor.engine.device_thread"):
        _fail_once(monkeypatch, impatient._device.scheduler, where, ValueError("odd"), 1)
        end = await finished(impatient, request(IDS))
    assert (end.reason, end.error_code) == ("error", "internal")
    assert (await finished(impatient, request(IDS))).reason == "length"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_that_ends_is_reported(impatient: TorchEngine, caplog: pytest.LogCaptureFixture) -> None:
    """What runs, what waits in the inbox, and what is asked for later."""
    go = threading.Event()

    def end() -> None:
        go.wait(5)
        raise SystemExit

    running = asyncio.create_task(finished(impatient, request(IDS, tokens=100)))
    await asyncio.sleep(0.005)
    with caplog.at_level(logging.CRITICAL, "sae_actor.engine.device_thread"):
        impatient._device._inbox.put(end)
        behind = asyncio.create_task(finished(impatient, request(IDS)))
        job = asyncio.create_task(impatient.raw(5, ()))
        await asyncio.sleep(0)
        go.set()
        ends = await asyncio.gather(running, behind, job, return_exceptions=True)
    assert [type(each) for each in ends] == [DeviceLostError] * 3
    impatient._device._thread.join(5)
    assert not impatient._device._thread.is_alive()
    assert await lost(impatient)


async def test_a_thread_that_cannot_begin_is_reported(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "sae_actor.engine.device_thread"):
        engine = TorchEngine(EngineSettings(threads=-1))
        async with asyncio.timeout(20):
            with pytest.raises(DeviceLostError):
                await engine.load_model(load(str(tiny_llama)), no_progress)
            await engine.close()


async def test_a_closed_engine_refuses(impatient: TorchEngine) -> None:
    await impatient.close()
    with pytest.raises(ModelNotLoadedError):
        await impatient.raw(5, ())


def _fail_once(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, raised: Exception, times: int
) -> Callable[[], int]:
    """The first `times` calls of `owner.name` raise; gives how many did."""
    whole = getattr(owner, name)
    calls: list[int] = []

    def failing(*args: Any, **named: Any) -> Any:
        if len(calls) < times:
            calls.append(1)
            raise raised
        return whole(*args, **named)

    monkeypatch.setattr(owner, name, failing)
    return lambda: len(calls)


async def test_the_event_loop_is_woken_once_a_step(impatient: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each token of each generation."""
    woken = 0
    append = impatient._device._append

    def counted() -> None:
        nonlocal woken
        woken += 1
        append()

    monkeypatch.setattr(impatient._device, "_append", counted)
    go = threading.Event()
    busy = asyncio.create_task(impatient._device.run(lambda: go.wait(5), "a long step"))
    await asyncio.sleep(0)
    asked = [asyncio.create_task(finished(impatient, request(IDS, tokens=6))) for _ in range(8)]
    await asyncio.sleep(0)
    go.set()
    assert [len(end.token_ids) for end in await asyncio.gather(*asked)] == [6] * 8
    assert await busy
    assert woken == 6
