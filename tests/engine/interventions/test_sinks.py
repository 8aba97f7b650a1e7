"""Sinks of whole texts: prompts in pieces behind the window, what is read there, what older logs mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_actor.domain.refs import Edit, StopWhen
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.generation import Generation
from sae_actor.ports import Watch
from tests.engine.asking import active, attach, finished, load, no_progress, read, request
from tests.engine.tiny import tiny_model

pytestmark = pytest.mark.anyio

EDIT = Edit(feature=3, strength=40.0)


def ids(n: int, seed: int = 1) -> tuple[int, ...]:
    return tuple(torch.randint(256, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


@asynccontextmanager
async def running(model: Path, sae: Path, prompt_tokens: int = 8) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings(threads=1, prompt_tokens=prompt_tokens))
    await engine.load_model(load(str(model)), no_progress)
    await engine.attach(attach(5), str(sae))
    yield engine
    await engine.close()


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step of a prompt had."""
    counts: list[int] = []
    ran = Generation.ran

    def spy(text: Generation, count: int, texts: int) -> bool:
        if text.in_prefill:
            counts.append(count)
        return ran(text, count, texts)

    monkeypatch.setattr(Generation, "ran", spy)
    return counts


def norms(prompt: tuple[int, ...]) -> torch.Tensor:
    """|x| behind block 1, of the model as transformers runs it."""
    model: Any = tiny_model("llama")
    with torch.inference_mode():
        hidden: torch.Tensor = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[2][0]
    found: torch.Tensor = torch.linalg.vector_norm(hidden, dim=-1)
    return found


@pytest.mark.parametrize(
    ("window", "expected"), [(512, [50]), (20, [20, 8, 8, 8, 6]), (4, [8, 8, 8, 8, 8, 8, 2]), (None, [50])]
)
async def test_the_first_piece_holds_the_window(
    tiny_llama: Path, tiny_sae: Path, pieces: list[int], window: int | None, expected: list[int]
) -> None:
    """Whatever `prompt_tokens` says, 8 here; in a log of before the window the prompt is run whole."""
    async with running(tiny_llama, tiny_sae) as engine:
        end = await finished(engine, request(ids(50), active(5, EDIT), window=window))
    assert pieces == expected
    assert end.edited == ((1, 57),)


async def test_the_first_piece_of_a_reading(tiny_llama: Path, tiny_sae: Path, pieces: list[int]) -> None:
    watch = Watch(sae=active(5), top_k=3)
    async with running(tiny_llama, tiny_sae) as engine:
        await finished(engine, request(ids(50), watched=(watch,), window=20))
        await finished(engine, request(ids(50), window=20))
        await finished(engine, request(ids(50), active(5, EDIT), window=20, deterministic=True))
        old = StopWhen(sae=active(5), feature=3, above=1e6)
        await finished(engine, request(ids(50), stop_when=old, window=None))
    assert pieces == [20, 8, 8, 8, 6] + [8] * 6 + [2] + [50] + [8] * 6 + [2]


async def test_a_long_prompt_is_the_same_in_pieces(tiny_llama: Path, tiny_sae: Path) -> None:
    """Beside others, whose first pieces wait for their turn."""
    asked = [request(ids(60, n), active(5, EDIT), tokens=6, window=20) for n in range(4)]
    async with running(tiny_llama, tiny_sae, prompt_tokens=512) as engine:
        whole = [await finished(engine, each) for each in asked]
    async with running(tiny_llama, tiny_sae, prompt_tokens=25) as engine:
        found = await asyncio.gather(*(finished(engine, each) for each in asked))
    for one, other in zip(whole, found, strict=True):
        assert (one.token_ids, one.edited, one.excluded) == (other.token_ids, other.edited, other.excluded)


def outlier(window: int) -> tuple[tuple[int, ...], list[bool]]:
    """A prompt, and which of its positions are sinks if 1.1 times the median makes one."""
    prompt = ids(40, 6)
    found = norms(prompt)
    limit = 1.1 * found[:window].median()
    return prompt, [at == 0 or bool(norm > limit) for at, norm in enumerate(found)]


@pytest.mark.parametrize("window", [512, 10])
async def test_sinks_by_the_norm(
    tiny_llama: Path, tiny_sae: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is edited, what is read, and the model's own norms agree. A random model has no outliers of 5 times."""
    monkeypatch.setattr("sae_actor.engine.interventions.positions.SINK_FACTOR", 1.1)
    prompt, sinks = outlier(window)
    assert 1 < sum(sinks) < 20
    watch, silent = Watch(sae=active(5), top_k=24), Watch(sae=active(5), top_k=24, exclude=("sink",))
    hourly = Watch(sae=active(5), top_k=24, exclude=("sink",), every_seconds=0.0)
    async with running(tiny_llama, tiny_sae) as engine:
        asked = request(prompt, active(5, EDIT), watched=(watch, silent, hourly), tokens=1, window=window)
        (token,), end = await read(engine.generate(asked))
        everywhere = active(5, Edit(feature=3, strength=40.0, exclude=()))
        all_of_them = await finished(engine, request(prompt, everywhere, tokens=1, window=window))
    left = [at for at, sink in enumerate(sinks) if sink]
    assert [at for first, stop in end.excluded for at in range(first, stop)] == left
    assert [at for first, stop in all_of_them.edited_sinks for at in range(first, stop)] == left
    all_, some, last = token.activations
    assert all_.sinks == some.sinks == tuple(sinks)
    assert [at for at, row in enumerate(some.rows) if row == ()] == left
    assert all(row == other for row, other, sink in zip(some.rows, all_.rows, sinks, strict=True) if not sink)
    assert (last.first, last.sinks) == (39, (sinks[-1],))


async def test_a_sink_among_what_is_made_does_not_end_the_text(
    tiny_llama: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_actor.engine.interventions.positions.SINK_FACTOR", 0.0)
    always = StopWhen(sae=active(5), feature=3, above=-1e6)
    never = StopWhen(sae=active(5), feature=3, above=-1e6, exclude=("sink",))
    async with running(tiny_llama, tiny_sae) as engine:
        assert (await finished(engine, request(ids(9), stop_when=always))).reason == "feature"
        assert (await finished(engine, request(ids(9), stop_when=never))).reason == "length"
