"""Room for SAEs beside what is promised to texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_actor.engine import EngineSettings, TorchEngine, memory
from sae_actor.errors import OutOfMemoryError
from tests.engine.asking import attach, finished, load, no_progress, request

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
    assert memory.cache_budget(0, CPU, 100, 50) == 1_000_000
    assert memory.cache_budget(77, CPU, 100, 50) == 77
    meminfo.unlink()
    limit.unlink()
    assert memory.available(CPU) is None
    assert memory.cache_budget(0, CPU, 100, 50) == 5000


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
