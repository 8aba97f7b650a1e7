"""Room for the generations of a batch, the order in which they get it, and forced tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from sae_actor.domain.refs import Edit
from sae_actor.engine import TorchEngine
from sae_actor.engine.decoding.model_runner import SequentialRunner
from sae_actor.errors import BadRequestError
from sae_actor.ports import GenerationRequest, Watch
from tests.engine.asking import active, finished, read, request
from tests.engine.tiny import save_tiny_model

from .batches import POINT, ids, running

pytestmark = pytest.mark.anyio


async def test_texts_take_no_more_than_they_may(tiny_llama: Path, tiny_sae: Path) -> None:
    """One text as long as there is room for; then several whose rooms just fit."""
    async with running(tiny_llama, sae=tiny_sae, cache_bytes=128 * 384) as engine:
        assert engine._model is not None
        assert engine._model.facts.cache_positions == 128
        assert await _most_taken(engine, [request(ids(20, 1), tokens=60)]) == 128 * 384
    async with running(tiny_llama, sae=tiny_sae, cache_bytes=4 * 128 * 384, prompt_tokens=16) as engine:
        asked = [request(ids(5 + n, n), tokens=10 + 3 * n) for n in range(7)]
        assert 3 * 128 * 384 <= await _most_taken(engine, asked) <= 4 * 128 * 384


async def _most_taken(engine: TorchEngine, asked: list[GenerationRequest]) -> int:
    """Bytes of keys and values after any step."""
    batch, most = engine._device.scheduler, 0
    texts = [asyncio.create_task(finished(engine, each)) for each in asked]
    step = batch.step

    def watched() -> None:
        nonlocal most
        step()
        most = max(most, batch.cache_used)

    batch.step = watched  # type: ignore[method-assign]  # seen on its own thread
    ends = await asyncio.gather(*texts)
    batch.step = step  # type: ignore[method-assign]
    assert {end.reason for end in ends} == {"length"}
    assert await engine._device.run(lambda: batch.cache_used, "looking") == 0
    return most


async def test_a_text_that_can_never_fit_is_told_both_numbers(tiny_llama: Path, tiny_sae: Path) -> None:
    async with running(tiny_llama, sae=tiny_sae, cache_bytes=128 * 384 - 1) as engine:
        with pytest.raises(BadRequestError) as caught:
            engine.generate(request(ids(9, 1)))
        assert engine._model is not None
        assert engine._model.facts.cache_positions == 0
    assert caught.value.fields["needed_bytes"] == 128 * 384
    assert caught.value.fields["available_bytes"] == 128 * 384 - 1


@pytest.mark.usefixtures("small_slots")
async def test_texts_wait_for_room_in_order(tiny_llama: Path, tiny_sae: Path) -> None:
    """Room for 96 positions: two of 32 and one that moves, or one of 64."""
    async with running(tiny_llama, sae=tiny_sae, cache_bytes=96 * 384) as engine:
        order: list[int] = []

        async def run(n: int, prompt: int, tokens: int) -> None:
            end = await finished(engine, request(ids(prompt, n), tokens=tokens))
            assert end.reason == "length"
            order.append(n)

        sizes = [(20, 10), (20, 12), (20, 40), (5, 2)]
        await asyncio.gather(*(run(n, *size) for n, size in enumerate(sizes)))
    assert order == [0, 1, 2, 3]


async def test_the_end_tells_how_many_ran_beside(tiny_llama: Path, tiny_sae: Path) -> None:
    async with running(tiny_llama, sae=tiny_sae) as engine:
        alone = await finished(engine, request(ids(9, 1)))
        ends = await asyncio.gather(*(finished(engine, request(ids(9, n), tokens=5 * (n + 1))) for n in range(4)))
        by_itself = asyncio.create_task(finished(engine, request(ids(9, 1), tokens=30, deterministic=True)))
        await asyncio.gather(*(finished(engine, request(ids(9, n), tokens=9)) for n in range(3)))
    assert alone.batch == (1, 1)
    assert ends[3].batch is not None
    assert ends[3].batch[0] == 1
    assert ends[3].batch[1] >= 2
    assert (await by_itself).batch == (1, 1)


async def test_a_model_that_has_to_run_its_texts_in_turn(tmp_path: Path, tiny_sae: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = save_tiny_model(tmp_path / "model", rope_parameters=rope)
    asked = [request(ids(9, n), active(5, Edit(feature=n, strength=4.0, exclude=())), tokens=8) for n in range(3)]
    async with running(model, (5, POINT), sae=tiny_sae) as engine:
        assert engine._model is not None
        assert isinstance(engine._model.runner, SequentialRunner)
        assert engine._model.facts.environment["batching"] is False
        assert engine._model.facts.in_turn == "its rotary embeddings depend on the length of the text (dynamic)"
        alone = [await finished(engine, each) for each in asked]
        assert await asyncio.gather(*(finished(engine, each) for each in asked)) == alone


async def test_a_watch_now_and_then(tiny_llama: Path, tiny_sae: Path) -> None:
    always, hourly = (Watch(sae=active(5), top_k=24, every_seconds=every) for every in (0.0, 3600.0))
    whole = Watch(sae=active(5), top_k=24)
    async with running(tiny_llama, (5, POINT), sae=tiny_sae) as engine:
        tokens, end = await read(engine.generate(request(ids(9, 1), watched=(whole, always, hourly), tokens=4)))
        absent = replace(always, sae=active(8))
        assert (await finished(engine, request(ids(9, 1), watched=(absent,), tokens=4))).token_ids == end.token_ids
        lacking = replace(always, features=(24,), top_k=None)
        assert (await finished(engine, request(ids(9, 1), watched=(lacking,)))).error_code == "feature_out_of_range"
    assert [len(token.activations) for token in tokens] == [3, 2, 2, 2]
    assert [(each.first, len(each.rows)) for each in tokens[0].activations] == [(0, 9), (8, 1), (8, 1)]
    for token in tokens:
        assert token.activations[1].rows[0] == token.activations[0].rows[-1]


async def test_forced_tokens(tiny_llama: Path, tiny_sae: Path) -> None:
    steered = active(5, Edit(feature=3, strength=6.0, exclude=()))
    asked = request(ids(9, 1), steered, tokens=8, temperature=1.0, seed=4, logprobs=1)
    async with running(tiny_llama, (5, POINT), sae=tiny_sae) as engine:
        tokens, end = await read(engine.generate(asked))
        again, same = await read(engine.generate(replace(asked, forced=end.token_ids)))
        bare, _ = await read(engine.generate(replace(asked, forced=end.token_ids, intervention=())))
    assert same.token_ids == end.token_ids
    assert [token.scored for token in again] == [token.scored for token in tokens]
    assert [token.scored for token in bare] != [token.scored for token in tokens]
