"""Texts that run beside each other are what each is alone, and what transformers makes of it with plain hooks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import Edit, Span
from sae_actor.ports import Watch
from sae_actor.sae import load_sae
from tests.engine.asking import active, finished, read, request
from tests.engine.blocks import IN_TURN
from tests.engine.tiny import CONFIGS, save_tiny_model, tiny_model

from .batches import LOWER, POINT, WINDOW, ids, plain, requests, running

pytestmark = pytest.mark.anyio


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
