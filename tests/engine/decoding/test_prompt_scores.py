"""Log probabilities of a prompt's tokens are those of a plain forward pass, steered and not, however the prompt is
run: whole or in pieces, alone or beside others, together or in turn."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import ActiveSae, Edit
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.logprobs import LEAST
from sae_actor.engine.decoding.model_runner import SequentialRunner
from sae_actor.engine.decoding.scores import TextScores
from sae_actor.engine.tokens.token_text import TokenTexts
from sae_actor.errors import InternalError
from sae_actor.ports import PromptToken
from sae_actor.sae import load_sae
from tests.engine.asking import active, attach, finished, load, no_progress, request
from tests.engine.tiny import save_tiny_model, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.anyio

PROMPTS = tuple(tuple((start * 7 + 13 * n) % 250 for n in range(size)) for start, size in ((1, 100), (2, 37), (3, 2)))
STRENGTH = 4.0
ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def plain(reference: Any, ids: tuple[int, ...]) -> Tensor:
    """[len − 1, vocabulary] log probabilities by the model's own forward pass over the whole prompt."""
    with torch.inference_mode():
        logits: Tensor = reference(input_ids=torch.tensor([ids])).logits[0]
    return logits.float().log_softmax(dim=-1)[:-1]


def agree(found: tuple[PromptToken, ...], wanted: Tensor, ids: tuple[int, ...]) -> None:
    assert tuple(each.id for each in found) == ids
    assert found[0].logprob is None
    for each, row in zip(found[1:], wanted, strict=True):
        assert each.logprob == pytest.approx(float(row[each.id]), abs=1e-4)
        best = row.topk(4)
        assert [top.logprob for top in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert {top.id for top in each.top} == set(best.indices.tolist())
        assert [top.logprob for top in each.top if top.id == each.id] in ([], [each.logprob])


@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("pieces", [512, 7])
@pytest.mark.parametrize("in_turn", [False, True])
async def test_they_are_those_of_a_plain_forward_pass(
    tmp_path: Path, tiny_sae: Path, steered: bool, pieces: int, in_turn: bool
) -> None:
    config: dict[str, Any] = {"rope_parameters": ROPE} if in_turn else {}
    engine = TorchEngine(EngineSettings(threads=1, prompt_tokens=pieces))
    folder = save_tiny_model(tmp_path / "model", **config)
    await engine.load_model(load(str(folder)), no_progress)
    assert engine._model is not None
    assert isinstance(engine._model.runner, SequentialRunner) is in_turn
    reference: Any = tiny_model("llama", **config)
    saes: tuple[ActiveSae, ...] = ()
    if steered:
        await engine.attach(attach(5), str(tiny_sae))
        saes = (active(5, Edit(feature=3, strength=STRENGTH, exclude=())),)
        row = load_sae(tiny_sae).W_dec[3]
        reference.model.layers[1].register_forward_hook(
            lambda _, __, out: (
                out + STRENGTH * row if isinstance(out, torch.Tensor) else (out[0] + STRENGTH * row, *out[1:])
            )
        )
    try:
        for ids in PROMPTS:
            end = await finished(engine, request(ids, *saes, tokens=3, prompt_logprobs=4))
            agree(end.prompt, plain(reference, ids), ids)
        asked = [request(ids, *saes, tokens=0, prompt_logprobs=4) for ids in PROMPTS]
        others = [request(ids, *saes, tokens=20, temperature=1.0) for ids in PROMPTS]
        ends = await asyncio.gather(
            *(finished(engine, each) for pair in zip(others, asked, strict=True) for each in pair)
        )
        for ids, end in zip(PROMPTS, ends[1::2], strict=True):
            agree(end.prompt, plain(reference, ids), ids)
        unscored = [await finished(engine, each) for each in others]
        assert [end.token_ids for end in ends[::2]] == [end.token_ids for end in unscored], "others are as they were"
    finally:
        await engine.close()


async def test_scores_are_given_out_in_one_piece_with_deterministic(engine: TorchEngine) -> None:
    ids = PROMPTS[0]
    first, second = [
        await finished(engine, request(ids, tokens=0, prompt_logprobs=2, deterministic=True)) for _ in range(2)
    ]
    assert first.prompt == second.prompt
    agree(
        (await finished(engine, request(ids, tokens=0, prompt_logprobs=4))).prompt, plain(tiny_model("llama"), ids), ids
    )


def scored(logits: Tensor, following: tuple[int, ...], most: int, pieces: TokenTexts) -> list[PromptToken]:
    """Tokens after a first one, from the logits before each."""
    scores = TextScores(request((0, *following), prompt_logprobs=most))
    scores.take(0, logits, pieces)
    return scores.tokens[1:]


def test_rows_in_groups_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = TokenTexts(tiny_tokenizer())
    logits = torch.randn(11, 260, generator=torch.Generator().manual_seed(1))
    following = tuple(range(11))
    whole = scored(logits, following, 3, pieces)
    monkeypatch.setattr("sae_actor.engine.decoding.scores.MOST_VALUES", 1000)
    assert scored(logits, following, 3, pieces) == whole
    assert [each.id for each in whole] == list(following)


def test_what_is_ruled_out_or_broken() -> None:
    pieces = TokenTexts(tiny_tokenizer())
    (ruled,) = scored(torch.tensor([[0.0, -torch.inf, 0.0]]), (1,), 5, pieces)
    assert (ruled.logprob, [each.logprob for each in ruled.top][-1]) == (LEAST, LEAST)
    with pytest.raises(InternalError):
        scored(torch.tensor([[0.0, torch.nan]]), (1,), 0, pieces)
