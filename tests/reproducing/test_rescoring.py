"""What would be chosen here, told from log probabilities alone, is what the sampler chooses from the logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae_actor.domain.events import Sampling
from sae_actor.engine.decoding.sampler import choose, gumbel
from sae_actor.ports import ScoredToken
from sae_actor.reproducing.rescoring import chosen

SIZE = 60


def ranked(logits: Tensor) -> list[ScoredToken]:
    """Every token, best first, as the engine scores them."""
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.sort(descending=True)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [ScoredToken(id=token, text="", bytes=None, logprob=value) for token, value in pairs]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 0.01])
def test_the_sampler_s_choice(temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(round(100 * temperature + 10 * top_p))
    for index in range(20):
        logits = 3 * torch.randn(SIZE, generator=generator)
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=1, seed=7)
        noise = None if temperature == 0 else gumbel(7, index, SIZE).tolist()
        top = ranked(logits)
        expected = choose(logits, sampling, index)
        for own in top[:5]:
            here, gap = chosen(top, own, sampling, noise)
            assert here == expected
            assert (gap > 0) is (own.id != expected)
            if own.id != expected and (top_p == 1 or temperature == 0):
                # So many logits more, and a hair, and the logged one is chosen; a hair less will not do.
                assert choose(_raised(logits, own.id, 1.01 * gap), sampling, index) == own.id
                assert choose(_raised(logits, own.id, 0.99 * gap), sampling, index) == expected


@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("top_k", [0, 1, 4, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_the_sampler_s_choice_among_few(top_k: int, top_p: float, min_p: float) -> None:
    generator = torch.Generator().manual_seed(top_k + round(100 * min_p))
    for index in range(20):
        logits = 3 * torch.randn(SIZE, generator=generator)
        sampling = Sampling(temperature=1.3, top_p=top_p, max_tokens=1, seed=7, top_k=top_k, min_p=min_p)
        noise, top = gumbel(7, index, SIZE).tolist(), ranked(logits)
        expected = choose(logits, sampling, index)
        for own in top[:8]:
            here, gap = chosen(top, own, sampling, noise)
            assert here == expected
            assert (gap > 0) is (own.id != expected)
            if own.id != expected and top_p == 1 and top_k in (0, 100):
                # Less may do: what is raised past the best one leaves others too improbable.
                assert choose(_raised(logits, own.id, 1.01 * gap), sampling, index) == own.id


def _raised(logits: Tensor, token: int, by: float) -> Tensor:
    raised = logits.clone()
    raised[token] += by
    return raised


def test_what_top_p_left_out_by_a_hair_is_a_near_tie() -> None:
    logits = torch.tensor([2.0, 1.0, 0.999, -3.0])
    mass = float(logits.softmax(dim=-1)[:2].sum())
    noise = [0.0, 0.0, 9.0, 0.0]
    top = ranked(logits)

    def gap(top_p: float) -> float:
        here, apart = chosen(top, top[2], Sampling(temperature=1.0, top_p=top_p, max_tokens=1, seed=0), noise)
        assert here == top[0].id
        return apart

    assert gap(mass - 0.05) == pytest.approx(0.001, abs=1e-4), "as near as the one before it"
    far = torch.tensor([2.0, 1.0, -1.0, -3.0])
    top, mass = ranked(far), float(far.softmax(dim=-1)[:2].sum())
    assert gap(mass - 1e-5) < 1e-3, "those before it hold just what is kept"
    assert gap(mass - 0.05) > 0.5


def test_a_tie_is_no_difference() -> None:
    top = ranked(torch.tensor([1.0, 1.0, 0.0]))
    greedy = Sampling(temperature=0.0, top_p=1.0, max_tokens=1, seed=0)
    assert chosen(top, top[1], greedy, None) == (top[1].id, 0.0)
    here, gap = chosen(top, top[2], greedy, None)
    assert (here, math.isclose(gap, 1.0, rel_tol=1e-6)) == (top[0].id, True)
