"""Texts that run beside each other are what each is alone, and what transformers makes of it with plain hooks."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from sae_actor.domain.refs import Edit, HookPoint, Span, When
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding import kv_cache
from sae_actor.engine.decoding.model_runner import SequentialRunner
from sae_actor.errors import BadRequestError
from sae_actor.ports import Finished, GenerationRequest, Token, Watch
from sae_actor.sae import load_sae
from tests.engine.asking import active, apart, attach, detach, finished, load, no_progress, read, request
from tests.engine.blocks import IN_TURN
from tests.engine.tiny import CONFIGS, save_tiny_model, save_tiny_sae, tiny_model

pytestmark = pytest.mark.anyio

LOWER = HookPoint("resid_post", 0)


@asynccontextmanager
async def running(model: Path, *saes: tuple[int, HookPoint], sae: Path, **settings: Any) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings(threads=1, **settings))
    await engine.load_model(load(str(model)), no_progress)
    for at, point in saes:
        await engine.attach(attach(at, point=point), str(sae))
    yield engine
    await engine.close()


@pytest.fixture
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts outgrow their slots often."""
    monkeypatch.setattr(kv_cache, "SMALLEST", 8)
    monkeypatch.setattr(kv_cache, "GROWTH", 1)


def ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(256, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


POINT = HookPoint("resid_post", 1)


WINDOW = 4
"""Prompts are read in pieces behind so many positions, of which the median norm is that tells sinks."""


def requests() -> list[GenerationRequest]:
    """Another method, position, feature, length and sampling each; several SAEs; a baseline; a reconstruction."""
    asked = [
        request(ids(5, 1), tokens=20),
        request(ids(17, 2), active(5, Edit(feature=3, strength=6.0, exclude=())), tokens=12),
        request(
            ids(3, 3),
            active(5, Edit(feature=1, strength=4.0, method="set", positions="generated", exclude=())),
            tokens=25,
        ),
        request(ids(30, 4), active(5, Edit(feature=2, strength=0.0, method="scale", exclude=("sink",))), tokens=9),
        request(
            ids(8, 5),
            active(5, Edit(feature=7, strength=0.1, method="cap", positions=Span(from_=2), exclude=())),
            tokens=18,
        ),
        request(
            ids(11, 6),
            active(5, Edit(feature=9, strength=0.0, method="project", exclude=())),
            tokens=16,
            temperature=0.8,
        ),
        request(
            ids(6, 7),
            active(6, Edit(feature=4, strength=3.0, exclude=()), point=LOWER),
            active(5, Edit(feature=5, strength=-5.0, method="set_projection", positions="response", exclude=())),
            tokens=14,
        ),
        request(ids(9, 8), active(5, mode="reconstruct"), tokens=10, temperature=1.0, top_p=0.9, seed=3),
        request(
            ids(7, 9),
            active(5, Edit(feature=8, strength=6.0, when=When(feature=2, above=0.05), exclude=())),
            tokens=15,
            logprobs=2,
        ),
        request(
            ids(7, 9),
            active(5, Edit(feature=3, strength=6.0, exclude=())),
            tokens=15,
            watched=(Watch(sae=active(5), top_k=3),),
        ),
        request(ids(12, 10), active(5, Edit(feature=3, strength=6.0, exclude=())), tokens=6, deterministic=True),
    ]
    return [replace(each, sink_window=WINDOW) for each in asked]


def plain(told: tuple[list[Token], Finished]) -> tuple[Any, ...]:
    """What does not depend on the last bits of a sum."""
    tokens, end = told
    return (
        end.token_ids,
        end.text,
        end.reason,
        end.error_detail,
        end.edited,
        end.excluded,
        replace(end.receipt, mean_relative_norm=0.0),
        [(token.text, token.offset) for token in tokens],
    )


@pytest.mark.usefixtures("small_slots")
@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "gemma2", "gpt2", "gpt_oss", "qwen3_5_text", "qwen3_5_moe_text", "llama4_text"]
)
async def test_together_as_alone(tmp_path: Path, tiny_sae: Path, model_type: str) -> None:
    model = save_tiny_model(tmp_path / "model", model_type)
    async with running(model, (5, POINT), (6, LOWER), sae=tiny_sae, prompt_tokens=7) as engine:
        assert engine._model is not None
        assert engine._model.facts.environment["batching"] is True
        alone = [await read(engine.generate(each)) for each in requests()]
        assert all(end.reason in ("length", "stop") for _, end in alone)
        for order in (requests(), requests()[::-1]):
            together = await asyncio.gather(*(read(engine.generate(each)) for each in order))
            expected = alone if order == requests() else alone[::-1]
            assert [plain(each) for each in together] == [plain(each) for each in expected]
            for (tokens, end), (same, was) in zip(together, expected, strict=True):
                assert end.receipt.mean_relative_norm == pytest.approx(was.receipt.mean_relative_norm, abs=1e-4)
                for token, other in zip(tokens, same, strict=True):
                    assert [each.id for each in token.top] == [each.id for each in other.top]
                    for told, before in zip(token.activations, other.activations, strict=True):
                        assert (told.first, len(told.rows)) == (before.first, len(before.rows))


TEMPERED = {"no_rope_layers": [1, 0, 1], "floor_scale": 4, "attn_scale": 0.5}
"""Llama 4's middle layer without rotary embedding looks at all keys, with queries scaled by position."""


@pytest.mark.usefixtures("small_slots")
@pytest.mark.parametrize(
    ("model_type", "config"), [*((name, {}) for name in sorted(CONFIGS)), ("llama4_text", TEMPERED)]
)
async def test_many_lengths_beside_each_other_are_generate(
    tmp_path: Path, tiny_sae: Path, model_type: str, config: dict[str, Any]
) -> None:
    """Prompts in pieces, slots outgrown, windows and chunks left behind, texts that end while others go on."""
    model = save_tiny_model(tmp_path / "model", model_type, **config)
    reference: Any = tiny_model(model_type, **config)
    asked = [(ids(n, n), 3 + 5 * (n % 4)) for n in (1, 2, 9, 16, 23, 40)]
    async with running(model, sae=tiny_sae, prompt_tokens=6) as engine:
        assert engine._model is not None
        assert engine._model.facts.environment["batching"] is (model_type not in IN_TURN)
        assert engine._model.facts.in_turn == IN_TURN.get(model_type)
        ends = await asyncio.gather(*(finished(engine, request(prompt, tokens=n)) for prompt, n in asked))
    for (prompt, n), end in zip(asked, ends, strict=True):
        fed = torch.tensor([prompt])
        out = reference.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=n, do_sample=False, pad_token_id=0
        )
        assert end.token_ids == tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("config", [{}, TEMPERED])
async def test_prompts_of_several_chunks_in_one_piece(tmp_path: Path, tiny_sae: Path, config: dict[str, Any]) -> None:
    """Chunks of 16: prompts that end in the second, at the end of it, and at the beginning of the fourth."""
    model = save_tiny_model(tmp_path / "model", "llama4_text", **config)
    reference: Any = tiny_model("llama4_text", **config)
    prompts = [ids(n, n) for n in (25, 32, 49)]
    async with running(model, sae=tiny_sae) as engine:
        told = await asyncio.gather(
            *(read(engine.generate(request(each, tokens=4, logprobs=3, ignore_eos=True))) for each in prompts)
        )
    for prompt, (tokens, end) in zip(prompts, told, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *end.token_ids]]), use_cache=False).logits[0]
        expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
        for row, token in zip(expected, tokens, strict=True):
            assert [each.id for each in token.top] == row.topk(3).indices.tolist()
            assert [each.logprob for each in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


async def test_eight_at_once_are_plain_hooks(tiny_llama: Path, tiny_sae: Path) -> None:
    """`add` with eight features at eight sets of positions, beside a baseline; reference: torch and `generate`."""
    spans = [(0, 99), (0, 4), (4, 99), (2, 7), (3, 4), (0, 1), (5, 8), (6, 99)]
    prompts = [ids(5, seed) for seed in range(8)]
    rows = load_sae(tiny_sae).W_dec
    asked = [
        request(
            prompt, active(5, Edit(feature=n, strength=5.0, positions=Span(from_=first, to=stop), exclude=())), tokens=9
        )
        for n, (prompt, (first, stop)) in enumerate(zip(prompts, spans, strict=True))
    ]
    async with running(tiny_llama, (5, POINT), sae=tiny_sae) as engine:
        bare, *ends = await asyncio.gather(
            *(finished(engine, each) for each in (request(prompts[0], tokens=9), *asked))
        )
    assert bare.token_ids == _hooked(prompts[0], rows[0], (0, 0), 9)
    for n, (prompt, span) in enumerate(zip(prompts, spans, strict=True)):
        assert ends[n].token_ids == _hooked(prompt, 5.0 * rows[n], span, 9)
        stop = min(span[1], len(prompt) + len(ends[n].token_ids) - 1)
        assert ends[n].edited == (((span[0], stop),) if stop > span[0] else ())


def _hooked(prompt: tuple[int, ...], row: Tensor, span: tuple[int, int], tokens: int) -> tuple[int, ...]:
    """Greedy tokens of the tiny llama with `row` added behind block 1 at positions [first, stop)."""
    model: Any = tiny_model("llama")
    seen = 0

    def add(_: Any, __: Any, out: Any) -> Any:
        nonlocal seen
        x = out if isinstance(out, Tensor) else out[0]
        at = torch.arange(seen, seen + x.shape[1])
        seen += x.shape[1]
        moved = x + ((at >= span[0]) & (at < span[1])).to(x.dtype)[None, :, None] * row
        return moved if isinstance(out, Tensor) else (moved, *out[1:])

    model.model.layers[1].register_forward_hook(add)
    fed = torch.tensor([prompt])
    out = model.generate(
        fed, attention_mask=torch.ones_like(fed), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "response", "last_prompt"])
async def test_receipts_of_prompts_in_pieces(tiny_llama: Path, tiny_sae: Path, positions: Any) -> None:
    edit = Edit(feature=2, strength=3.0, positions=positions, exclude=())
    asked = request(ids(50, 1), active(5, edit), tokens=7, window=WINDOW)
    async with running(tiny_llama, (5, POINT), sae=tiny_sae) as engine:
        whole = await read(engine.generate(asked))
    async with running(tiny_llama, (5, POINT), sae=tiny_sae, prompt_tokens=8) as engine:
        pieces, _ = await asyncio.gather(read(engine.generate(asked)), read(engine.generate(request(ids(9, 2)))))
    assert plain(pieces) == plain(whole)
    counts = {"all": 56, "prompt": 50, "generated": 6, "response": 7, "last_prompt": 1}
    assert pieces[1].receipt.tokens_edited == counts[positions]


async def test_activations_of_prompts_in_pieces(tiny_llama: Path, tiny_sae: Path) -> None:
    watch = Watch(sae=active(5), top_k=24)
    async with running(tiny_llama, (5, POINT), sae=tiny_sae, prompt_tokens=8) as engine:
        tokens, _ = await read(engine.generate(request(ids(50, 1), watched=(watch,), tokens=3, window=WINDOW)))
    assert [(each.first, len(each.rows)) for token in tokens for each in token.activations] == [
        (0, 50),
        (50, 1),
        (51, 1),
    ]


# — faults —


async def test_an_sae_with_bad_rows_ends_only_the_texts_that_touch_them(tiny_llama: Path, tmp_path: Path) -> None:
    folder = save_tiny_sae(tmp_path / "sae")
    good, bad = (
        active(5, Edit(feature=3, strength=5.0, exclude=())),
        active(5, Edit(feature=4, strength=5.0, exclude=())),
    )
    async with running(tiny_llama, (5, POINT), sae=folder) as engine:
        alone = await finished(engine, request(ids(9, 1), good))
        engine._residents[5].sae.W_dec[4] = torch.nan
        asked = [request(ids(9, 1), good), request(ids(9, 1), bad), request(ids(9, 1), good)]
        first, failed, last = await asyncio.gather(*(finished(engine, each) for each in asked))
    assert first.token_ids == last.token_ids == alone.token_ids
    assert first.edited == last.edited == alone.edited
    assert (failed.reason, failed.faulted) == ("error", 5)


async def test_a_forward_pass_that_fails_for_one_text(tiny_llama: Path, tiny_sae: Path) -> None:
    """A module that cannot stand one token: the others get their tokens as if nothing had been."""
    async with running(tiny_llama, sae=tiny_sae) as engine:
        assert engine._model is not None
        good = [request(ids(9, seed), tokens=12) for seed in range(3)]
        alone = [await finished(engine, each) for each in good]

        def fail(_: Any, args: tuple[Any, ...]) -> None:
            if bool((args[0] == 259).any()):
                raise RuntimeError("secret")

        engine._model.network.get_input_embeddings().register_forward_pre_hook(fail)
        bad = request((7, 259, 8), tokens=12)
        ends = await asyncio.gather(*(finished(engine, each) for each in (*good, bad)))
        assert [apart(end) for end in ends[:3]] == [apart(end) for end in alone]
        assert (ends[3].reason, ends[3].error_code) == ("error", "internal")
        assert "secret" not in (ends[3].error_detail or "")


async def test_every_end_is_one_texts_own(tiny_llama: Path, tmp_path: Path) -> None:
    """A reader that leaves, a deadline, an SAE that fails and one that is detached, beside three that go on."""
    folder = save_tiny_sae(tmp_path / "sae")
    fine = [
        request(ids(9, 1), tokens=90),
        request(ids(8, 2), active(5, Edit(feature=3, strength=5.0, exclude=())), tokens=90),
        request(ids(7, 3), active(5, mode="reconstruct"), tokens=90, temperature=0.9),
    ]
    async with running(tiny_llama, (5, POINT), (6, LOWER), (7, LOWER), sae=folder) as engine:
        alone = [await finished(engine, each) for each in fine]
        engine._residents[7].sae.W_dec[4] = torch.nan
        survivors = [asyncio.create_task(finished(engine, each)) for each in fine]
        left = engine.generate(request(ids(9, 4), tokens=100))
        late = asyncio.create_task(finished(engine, request(ids(9, 5), tokens=100, deadline=0.02)))
        failing = request(
            ids(9, 6), active(7, Edit(feature=4, strength=1.0, positions="generated", exclude=()), point=LOWER)
        )
        failed = asyncio.create_task(finished(engine, failing))
        removed = active(6, Edit(feature=1, strength=2.0, exclude=()), point=LOWER)
        gone = asyncio.create_task(finished(engine, request(ids(9, 7), removed, tokens=115)))
        await anext(left)
        await left.aclose()
        assert await engine.detach(detach(6), 0.0) > 0
        assert [(end.token_ids, end.text) for end in await asyncio.gather(*survivors)] == [
            (end.token_ids, end.text) for end in alone
        ]
        assert (await late).error_code == "not_ready"
        assert ((await failed).error_code, (await failed).faulted) == ("internal", 7)
        assert (await gone).reason == "intervention_removed"
        again = [await finished(engine, each) for each in fine]
    assert again == alone


async def test_joined_edits_hold_no_sae_that_was_detached(tiny_llama: Path, tiny_sae: Path) -> None:
    async with running(tiny_llama, (5, POINT), sae=tiny_sae) as engine:
        sae = weakref.ref(engine._residents[5].sae)
        asked = [request(ids(9, n), active(5, Edit(feature=n, strength=2.0, exclude=())), tokens=80) for n in range(3)]
        texts = [asyncio.create_task(finished(engine, each)) for each in asked]
        passing = Watch(sae=active(5), top_k=2, every_seconds=0.0)
        beside = asyncio.create_task(finished(engine, request(ids(9, 5), watched=(passing,), tokens=100)))
        await asyncio.sleep(0.05)
        await engine.detach(detach(5), 0.0)
        assert {(await each).reason for each in texts} <= {"intervention_removed", "length"}
        assert (await beside).reason == "length"
        gc.collect()
        assert sae() is None


async def test_a_text_leaves_nothing_to_the_next_in_its_place(tiny_llama: Path, tiny_sae: Path) -> None:
    """A text whose activations stop being finite, beside a longer one; then another in its slot."""
    async with running(tiny_llama, sae=tiny_sae) as engine:
        assert engine._model is not None
        good = request(ids(7, 3), tokens=10)
        alone = await finished(engine, good)
        bad = replace(request(ids(40, 2)), forced=(1, 2, 3, 259, 4, 5))

        def spoil(_: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return torch.where((args[0] == 259)[..., None], torch.nan, out)

        engine._model.network.get_input_embeddings().register_forward_hook(spoil)
        long = engine.generate(request(ids(90, 1), tokens=38))
        await anext(long)
        end = await finished(engine, bad)
        assert (end.reason, end.error_code, end.token_ids) == ("error", "internal", (1, 2, 3, 259))
        assert end.error_detail == "the model's logits are not finite"
        innocent = [await finished(engine, good) for _ in range(2)]
        assert (await read(long))[1].reason == "length"
    assert innocent[0].batch is not None
    assert innocent[0].batch[1] == 2, "it ran beside the long one"
    assert [(end.reason, end.token_ids) for end in innocent] == [("length", alone.token_ids)] * 2


# — room —


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


# — reading now and then, and forced tokens —


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
