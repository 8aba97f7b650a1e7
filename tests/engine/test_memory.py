"""Room for SAEs beside what is promised to texts; what is left of a model that is gone."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import Edit
from sae_actor.engine import EngineSettings, TorchEngine, memory
from sae_actor.errors import OutOfMemoryError
from tests.engine.asking import active, attach, finished, load, no_progress, read, request
from tests.engine.tiny import save_tiny_model

CPU = torch.device("cpu")


def test_what_the_machine_has() -> None:
    free = memory.available(CPU)
    assert free is not None
    assert 2**20 < free < 2**50


def test_the_narrower_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    used.write_text("1000000\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_LIMITS", ((limit, used),))
    assert memory.available(CPU) == 5000 * 1024
    limit.write_text("max\n")
    assert memory.available(CPU) == 5000 * 1024
    limit.write_text("3000000\n")
    assert memory.available(CPU) == 2_000_000
    assert memory.cache_budget(0, CPU, 5000) == 1_000_000
    assert memory.cache_budget(77, CPU, 5000) == 77
    meminfo.unlink()
    limit.unlink()
    assert memory.available(CPU) is None
    assert memory.cache_budget(0, CPU, 5000) == 5000


@pytest.mark.anyio
async def test_an_sae_has_what_texts_do_not(tiny_llama: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(EngineSettings(threads=1, cache_bytes=100_000))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    effect = attach(5)
    needed = effect.sae.memory_bytes("float32")
    monkeypatch.setattr(memory, "available", lambda _: 100_000 + needed - 1)
    with pytest.raises(OutOfMemoryError) as caught:
        await engine.attach(effect, str(tiny_sae))
    assert caught.value.fields == {"needed_bytes": needed, "available_bytes": needed - 1}
    monkeypatch.setattr(memory, "available", lambda _: 100_000 + needed)
    await engine.attach(effect, str(tiny_sae))
    assert (await finished(engine, request((1, 2, 3)))).reason == "length"
    await engine.close()


@pytest.mark.anyio
@pytest.mark.parametrize("in_turn", [False, True])
async def test_what_texts_have_taken_is_promised_to_them_no_more(
    tmp_path: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, in_turn: bool
) -> None:
    """Tensors of their own, and those of texts that run one after the other, are counted like all others."""
    rope = {"rope_type": "dynamic" if in_turn else "default", "factor": 2.0, "rope_theta": 10000.0}
    model = save_tiny_model(tmp_path / "model", rope_parameters=rope)
    engine = TorchEngine(EngineSettings(threads=1, cache_bytes=100_000))
    await engine.load_model(load(str(model)), no_progress)
    assert engine._model is not None
    assert engine._model.runner is not None
    assert engine._model.runner.together is not in_turn
    engine._model.network.lm_head.register_forward_hook(lambda *_: time.sleep(0.005))
    effect, batch, taken = attach(5), engine._device.scheduler, 0
    needed = effect.sae.memory_bytes("float32")

    def free(_: torch.device) -> int:
        nonlocal taken
        (running,) = batch._running
        assert running.kept is not None
        taken = 384 * (running.kept.length if in_turn else 128)
        return 100_000 - taken + needed

    monkeypatch.setattr(memory, "available", free)
    text = engine.generate(request((1, 2, 3), tokens=100, deterministic=not in_turn))
    await anext(text)
    await engine.attach(effect, str(tiny_sae))
    assert taken > 0
    await text.aclose()
    await engine.close()


@pytest.mark.anyio
async def test_an_unloaded_model_is_gone_whoever_keeps_its_texts(engine: TorchEngine, tiny_sae: Path) -> None:
    """Texts that are done, that run, and that never begin."""
    assert engine._model is not None
    kept = [weakref.ref(each) for each in (engine._model, engine._model.network, engine._model.tokenizer)]
    await engine.attach(attach(5), str(tiny_sae))
    steered = active(5, Edit(feature=3, strength=2.0))
    texts: list[Any] = [engine.generate(request((1, 2, 3), steered, logprobs=1))]
    assert (await read(texts[0]))[1].reason == "length"
    texts += [engine.generate(request((1, 2, 3), *saes, tokens=100)) for saes in ((), (steered,)) for _ in range(30)]
    await anext(texts[1])
    busy = asyncio.create_task(engine._device.run(lambda: time.sleep(0.05), "a long step"))
    await asyncio.sleep(0)
    engine.retain(Residents(model=None))
    await asyncio.sleep(0)
    texts.append(engine.generate(request((1, 2, 3), steered)))
    await busy
    ends = [(await read(text))[1].error_code for text in texts[2:]]
    assert set(ends) <= {None, "model_not_loaded"}
    assert ends[-1] == "model_not_loaded"
    gc.collect()
    assert [each() for each in kept] == [None] * 3
    assert all(text.finished.done() for text in texts)
