"""Penalties, bias, top_k, top_p and min_p against transformers' own processors, alone and together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sae_actor.domain.events import Sampling
from sae_actor.engine.decoding.penalties import Penalties
from sae_actor.engine.decoding.sampler import Asked, candidates, choose_all, gumbel, processed_logits
from sae_actor.ports import GenerationRequest

VOCABULARY = 60
TOKEN = st.integers(0, VOCABULARY - 1)


def made(prompt: list[int], **settings: Any) -> GenerationRequest:
    fields = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 100, "seed": 0, **settings}
    return GenerationRequest(generation_id="g", token_ids=tuple(prompt), sampling=Sampling(**fields), intervention=())


def asked(row: int, request: GenerationRequest, answer: list[int], banned: tuple[int, ...] = ()) -> Asked:
    penalties = Penalties.of(request)
    for token in answer:
        if penalties is not None:
            penalties.add(token)
    return Asked(row, request, len(answer), banned, penalties)


def processed_by_hand(logits: Tensor, request: GenerationRequest, answer: list[int], banned: tuple[int, ...]) -> Tensor:
    """[vocabulary], one token at a time as it is defined; repetition and bias by transformers."""
    sampling, ids = request.sampling, torch.tensor([[*request.token_ids, *answer]])
    found = logits[None].float()
    if sampling.repetition_penalty != 1:
        found = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, found)
    found = found.clone()
    for token in set(answer):
        found[0, token] -= answer.count(token) * sampling.frequency_penalty
        found[0, token] -= sampling.presence_penalty
    if sampling.logit_bias:
        bias = {(token,): float(by) for token, by in sampling.logit_bias}
        found = SequenceBiasLogitsProcessor(sequence_bias=bias)(ids, found)
    found[0, list(banned)] = -torch.inf
    return found[0]


def warped_by_hand(scores: Tensor, sampling: Sampling) -> Tensor:
    """[vocabulary], as transformers orders its warpers."""
    warpers = LogitsProcessorList()
    warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    found: Tensor = warpers(torch.zeros(1, 1, dtype=torch.long), scores.double()[None])
    return found[0]


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_p": st.sampled_from([1.0, 0.95, 0.5, 0.01]),
        "top_k": st.sampled_from([0, 1, 3, 20, 1000]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, 0.4, -2.0]),
        "presence_penalty": st.sampled_from([0.0, 1.5, -0.5]),
        "logit_bias": st.dictionaries(TOKEN, st.floats(-100, 100, width=32), max_size=4).map(
            lambda bias: tuple(sorted(bias.items()))
        ),
        "seed": st.integers(0, 1000),
    }
)
TEXT = st.tuples(
    st.lists(TOKEN, min_size=1, max_size=12),
    st.lists(st.integers(0, 7), max_size=90),
    st.lists(TOKEN, max_size=3, unique=True).map(tuple),
    SETTINGS,
)


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(0, 10_000))
def test_any_settings_in_a_batch_are_those_of_a_plain_reference(texts: list[Any], seed: int) -> None:
    logits = 4 * torch.randn(len(texts), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    untouched = logits.clone()
    requests = [made(prompt, **settings) for prompt, _, _, settings in texts]
    asks = [
        asked(row, request, answer, banned)
        for row, (request, (_, answer, banned, _)) in enumerate(zip(requests, texts, strict=True))
    ]
    rows, processed = processed_logits(logits, asks)
    chosen = choose_all(logits, asks)
    for row, (request, (_, answer, banned, _)) in enumerate(zip(requests, texts, strict=True)):
        wanted = processed_by_hand(logits[row], request, answer, banned)
        mine = processed[rows[row]] if row in rows else logits[row]
        torch.testing.assert_close(mine, wanted, rtol=2e-6, atol=1e-5)
        assert chosen[row] == choose_all(logits[row][None], [asked(0, request, answer, banned)])[0], "alone"
        if request.sampling.temperature == 0:
            assert chosen[row] == int(mine.argmax())
            continue
        kept = warped_by_hand(mine, request.sampling)
        drawn = kept + gumbel(request.sampling.seed, len(answer), VOCABULARY)
        assert chosen[row] == int(drawn.argmax())
    assert torch.equal(logits, untouched), "the model's own logits are scored, and stay"


@given(st.integers(0, 10_000), st.integers(0, 70), st.sampled_from([1.0, 0.9, 0.3]), st.sampled_from([0.0, 0.1, 1.0]))
def test_what_is_kept_is_what_the_warpers_keep(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    scores = 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sampling = Sampling(temperature=0.8, top_p=top_p, max_tokens=1, seed=0, top_k=top_k, min_p=min_p)
    scaled = (scores - scores.max()) / 0.8
    wanted = warped_by_hand(scores, sampling).isfinite().nonzero().squeeze(1)
    assert sorted(candidates(scaled, sampling).tolist()) == wanted.tolist()


def test_top_k_keeps_what_is_as_probable_as_the_last() -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=1, seed=0, top_k=2)
    scaled = torch.tensor([0.0, -1.0, -2.0, -1.0], dtype=torch.float64)
    assert candidates(scaled, sampling).tolist() == [0, 1, 3]


def test_neutral_settings_touch_nothing() -> None:
    logits = torch.randn(2, VOCABULARY)
    assert Penalties.of(made([1, 2])) is None
    rows, processed = processed_logits(logits, [asked(0, made([1]), []), asked(1, made([2], top_k=5, min_p=0.1), [])])
    assert rows == {}
    assert processed.numel() == 0


@pytest.mark.parametrize("flaw", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_noticed(flaw: float) -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 3] = flaw
    request = made([1], frequency_penalty=1.0, temperature=0.0)
    assert choose_all(logits, [asked(0, request, [3]), asked(1, request, [0])]) == [None, 1]
