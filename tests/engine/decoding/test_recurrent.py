"""Linear attention in a step of many texts: each carries its own state, which counts only when its step was good."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.attention import ScheduledTokens
from sae_actor.engine.decoding.kv_cache import KVCache
from sae_actor.engine.decoding.model_runner import TOLERANCE, BatchedRunner, runner_for
from tests.engine.asking import active, apart, attach, finished, load, no_progress, read, request
from tests.engine.tiny import HIDDEN, VOCABULARY, save_tiny_model, tiny_model

pytestmark = pytest.mark.anyio

FAMILIES = ["qwen3_5_text", "qwen3_5_moe_text"]
LINEAR = HookPoint("attn_out", 1)
"""What the linear attention of block 1 adds to the stream."""
STATE = 2 * (4 * 64 + 4 * 8 * 8) * 4
"""Bytes of a text's states: two layers, each with 4 positions of 64 channels and 4 heads of 8 × 8, in float32."""
POSITION = 192
"""Bytes of keys and values of one position: one layer, two heads of 12."""


@asynccontextmanager
async def running(model: Path, sae: Path, **settings: Any) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings(threads=1, **settings))
    facts = await engine.load_model(load(str(model)), no_progress)
    assert (facts.environment["batching"], facts.in_turn) == (True, None)
    await engine.attach(attach(5, point=LINEAR), str(sae))
    try:
        yield engine
    finally:
        await engine.close()


def ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(256, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


async def used(engine: TorchEngine) -> int:
    return await engine._device.run(lambda: engine._device.scheduler.cache_used, "looking")


# — the runner —


class Text:
    """Runs its tokens in pieces of any size."""

    def __init__(self, runner: BatchedRunner, tokens: list[int], prompt: int) -> None:
        self.tokens, self.prompt = tokens, prompt
        self.kept: KVCache = runner.open(alone=False)

    def piece(self, most: int) -> ScheduledTokens:
        at = self.kept.length
        if at >= self.prompt:
            return ScheduledTokens(self.kept, self.tokens[at : at + 1], True)
        return ScheduledTokens(self.kept, self.tokens[at : min(self.prompt, at + most)], False)


class _StepError(Exception):
    pass


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_texts_that_come_and_go_and_steps_that_fail(model_type: str, seed: int) -> None:
    """At every step the logits are those of the text's tokens run alone; a step that failed anywhere left nothing."""
    rng = random.Random(seed)
    model, reference = tiny_model(model_type), tiny_model(model_type)
    fitted = runner_for(model, VOCABULARY)
    runner = fitted.runner
    assert isinstance(runner, BatchedRunner)
    texts: list[Text] = []
    fails = 0

    def maybe(*_: Any) -> None:
        nonlocal fails
        if rng.random() < 0.04:
            fails += 1
            raise _StepError

    for name in ("model.layers.0.linear_attn", "model.layers.1.linear_attn.norm", "model.layers.2", "lm_head"):
        model.get_submodule(name).register_forward_pre_hook(maybe)
    for _ in range(60):
        if len(texts) < 5 and rng.random() < 0.5:
            n = rng.randint(1, 30)
            texts.append(Text(runner, [rng.randrange(VOCABULARY) for _ in range(n + 12)], n))
        chosen = rng.sample(texts, rng.randint(0, len(texts)))
        if not chosen:
            continue
        pieces = [text.piece(rng.randint(1, 9)) for text in chosen]
        arranged = runner.arrange(pieces)
        try:
            logits = runner.logits(arranged)
        except _StepError:
            continue
        runner.keep(arranged)
        for row, text in zip(logits, chosen, strict=True):
            wanted = reference(torch.tensor([text.tokens[: text.kept.length]]), use_cache=False).logits[0, -1]
            worst = (row - wanted).abs().max() / wanted.abs().max()
            assert worst <= TOLERANCE[torch.float32]
        for text in [each for each in texts if each.kept.length == len(each.tokens) or rng.random() < 0.03]:
            runner.release(text.kept)
            texts.remove(text)
    assert fails
    for text in texts:
        runner.release(text.kept)
    assert runner.nbytes == 0


@torch.inference_mode()
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_module_is_hooked_as_any_other(model_type: str) -> None:
    """Called several times in a step, it is seen once, with all rows."""
    model = tiny_model(model_type)
    seen: list[tuple[int, ...]] = []
    runner = runner_for(model, VOCABULARY).runner
    model.get_submodule("model.layers.1.linear_attn").register_forward_hook(
        lambda _, __, out: seen.append(tuple(out.shape))
    )
    texts = [Text(runner, list(ids(9, n)), prompt) for n, prompt in enumerate((9, 4, 4, 6))]  # type: ignore[arg-type]
    for most in (4, 3):
        arranged = runner.arrange([text.piece(most) for text in texts])
        runner.logits(arranged)
        runner.keep(arranged)
    assert seen == [(1, 16, HIDDEN), (1, 3 + 1 + 1 + 2, HIDDEN)]


@torch.inference_mode()
def test_bytes_of_states() -> None:
    """What they take, what is said that a text takes, and that a text which has left takes nothing."""
    model = tiny_model("qwen3_5_text")
    fitted = runner_for(model, VOCABULARY)
    assert fitted.size == (POSITION, 2 * STATE)
    runner: Any = fitted.runner
    texts = [Text(runner, list(ids(9, n)), 4) for n in range(3)]

    def step(*chosen: Text) -> int:
        arranged = runner.arrange([text.piece(9) for text in chosen])
        runner.logits(arranged)
        runner.keep(arranged)
        taken: int = runner._states.nbytes
        return taken

    assert step(texts[0]) == STATE
    assert step(*texts[1:]) == 3 * STATE
    assert step(*texts) == 3 * STATE
    runner.release(texts[0].kept)
    assert step(*texts[1:]) == 2 * STATE
    for text in texts[1:]:
        runner.release(text.kept)
    assert runner.nbytes == 0


# — the engine —


async def test_an_unloaded_model_is_gone(tmp_path: Path, tiny_sae: Path) -> None:
    """Its modules, whose forward pass was replaced, do not hold themselves."""
    model = save_tiny_model(tmp_path / "model", "qwen3_5_text")
    async with running(model, tiny_sae) as engine:
        await finished(engine, request(ids(9, 1), tokens=3))
        assert engine._model is not None
        held = weakref.ref(engine._model.network.model.layers[0].linear_attn)
        gc.collect()
        gc.disable()
        try:
            engine.retain(Residents(model=None))
            await asyncio.sleep(0)  # its job is on its way
            await engine._device.run(lambda: None, "waiting")
            assert held() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("model_type", FAMILIES)
async def test_an_sae_on_linear_attention_changes_only_its_own_text(
    tmp_path: Path, tiny_sae: Path, model_type: str
) -> None:
    model = save_tiny_model(tmp_path / "model", model_type)
    edit = active(5, Edit(feature=3, strength=8.0, exclude=()), point=LINEAR)
    prompts = [ids(n, n) for n in (3, 9, 17, 6)]
    async with running(model, tiny_sae, prompt_tokens=7) as engine:
        alone = [await finished(engine, request(prompt, tokens=20)) for prompt in prompts]
        steered = await finished(engine, request(prompts[2], edit, tokens=20))
        asked = [request(prompt, *([edit] if n == 2 else []), tokens=20) for n, prompt in enumerate(prompts)]
        together = await asyncio.gather(*(finished(engine, each) for each in asked))
        assert await used(engine) == 0
    assert steered.token_ids != alone[2].token_ids
    # How many shared its first step depends on how the prompts share that step's tokens.
    assert together[3].batch is not None
    assert together[3].batch[1] == 4
    alone[2] = steered
    assert [end.token_ids for end in together] == [end.token_ids for end in alone]
    assert [end.edited for end in together] == [end.edited for end in alone]
    assert together[2].edited == ((0, 36),)


async def test_a_step_that_fails_behind_the_states_is_tried_again_from_before(tmp_path: Path, tiny_sae: Path) -> None:
    """One text cannot pass block 2: by then the states of all texts have been computed."""
    model = save_tiny_model(tmp_path / "model", "qwen3_5_text")
    good = [request(ids(9 + seed, seed), tokens=12) for seed in range(3)]
    bad = request((7, 8, 9, 10), tokens=12, logprobs=1)
    async with running(model, tiny_sae) as engine:
        alone = [await finished(engine, each) for each in good]
        tokens, _ = await read(engine.generate(bad))
        assert engine._model is not None
        network = engine._model.network
        fourth, here, fails = tokens[3].id, False, 0

        def look(_: Any, args: tuple[Tensor, ...]) -> None:
            nonlocal here
            here = bool((args[0] == fourth).any())

        def fail(*_: Any) -> None:
            nonlocal fails
            if here:
                fails += 1
                raise RuntimeError("secret")

        assert not any(fourth in (*each.token_ids, *end.token_ids) for each, end in zip(good, alone, strict=True))
        network.get_input_embeddings().register_forward_pre_hook(look)
        network.model.layers[2].register_forward_pre_hook(fail)
        *ends, failed = await asyncio.gather(*(finished(engine, each) for each in (*good, bad)))
        assert await used(engine) == 0
    assert [apart(end) for end in ends] == [apart(end) for end in alone]
    assert (failed.reason, failed.error_code, failed.token_ids) == (
        "error",
        "internal",
        tuple(t.id for t in tokens[:4]),
    )
    assert fails == 2


async def test_a_text_whose_reader_leaves_takes_nothing(tmp_path: Path, tiny_sae: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "qwen3_5_text")
    async with running(model, tiny_sae) as engine:
        expected = await finished(engine, request(ids(9, 1), tokens=40))
        beside = asyncio.create_task(finished(engine, request(ids(9, 1), tokens=40)))
        left = engine.generate(request(ids(11, 2), tokens=100))
        await anext(left)
        await left.aclose()
        assert (await beside).token_ids == expected.token_ids
        assert await used(engine) == 0


async def test_texts_take_no_more_than_they_may(tmp_path: Path, tiny_sae: Path) -> None:
    """Room for four; after each step states and keys together are within it."""
    model = save_tiny_model(tmp_path / "model", "qwen3_5_text")
    room = 4 * (128 * POSITION + 2 * STATE)
    asked = [request(ids(5 + n, n), tokens=10 + 3 * n) for n in range(7)]
    async with running(model, tiny_sae, cache_bytes=room, prompt_tokens=16) as engine:
        batch, most, most_running = engine._device.scheduler, 0, 0
        step: Callable[[], None] = batch.step

        def watched() -> None:
            nonlocal most, most_running
            step()
            most, most_running = max(most, batch.cache_used), max(most_running, len(batch._running))

        batch.step = watched  # type: ignore[method-assign]  # seen on its own thread
        ends = await asyncio.gather(*(finished(engine, each) for each in asked))
        assert await used(engine) == 0
    assert {end.reason for end in ends} == {"length"}
    assert most_running == 3  # one more could not move to a larger slot
    assert 3 * (128 * POSITION + STATE) <= most <= room
