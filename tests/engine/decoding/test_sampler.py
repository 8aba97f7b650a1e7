"""Sampling: what is drawn, how often, and from what."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.domain.events import Sampling
from sae_actor.engine.decoding import sampler
from sae_actor.engine.decoding.sampler import Asked, choose, choose_all, gumbel
from sae_actor.errors import InternalError
from sae_actor.ports import GenerationRequest

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 3.5, -torch.inf])


def settings(temperature: float, top_p: float = 1.0, seed: int = 0) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, max_tokens=1, seed=seed)


def counts(temperature: float, top_p: float, draws: int = 4000) -> list[int]:
    found = [0] * len(LOGITS)
    for index in range(draws):
        found[choose(LOGITS, settings(temperature, top_p), index)] += 1
    return found


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    assert choose(LOGITS, settings(0.0), 0) == 4
    assert choose(torch.zeros(5), settings(0.0), 3) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    draws = 4000
    wanted = (LOGITS.double() / temperature).softmax(-1)
    for found, p in zip(counts(temperature, 1.0, draws), wanted.tolist(), strict=True):
        assert abs(found - draws * p) <= 4.5 * math.sqrt(draws * p * (1 - p)) + 1e-9


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    mass = LOGITS.softmax(-1)
    best, second = float(mass[4]), float(mass[1])
    assert [i for i, n in enumerate(counts(1.0, best * 0.99)) if n] == [4]
    assert [i for i, n in enumerate(counts(1.0, best + second * 0.5)) if n] == [1, 4]
    assert [i for i, n in enumerate(counts(1.0, 0.0, 50)) if n] == [4]


def test_noise_is_a_function_of_seed_and_index_alone() -> None:
    assert torch.equal(gumbel(3, 5, 100), gumbel(3, 5, 100))
    assert not torch.equal(gumbel(3, 5, 100), gumbel(3, 6, 100))
    assert not torch.equal(gumbel(3, 5, 100), gumbel(4, 5, 100))
    # Pinned: logged texts are reproduced from their seeds, so these numbers may never change.
    assert gumbel(42, 0, 4).tolist() == pytest.approx(
        [-0.25981057767998067, -0.03762489499843355, 1.361430686666253, -0.018655405281274937], rel=1e-12
    )


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5])
@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_shortcuts_change_nothing(monkeypatch: pytest.MonkeyPatch, top_p: float, spread: float) -> None:
    """Against the formulas over the whole vocabulary."""
    monkeypatch.setattr(sampler, "FEW", 16)
    monkeypatch.setattr(sampler, "FAR", 3.0)
    generator = torch.Generator().manual_seed(1)
    for index in range(60):
        logits = spread * torch.randn(500, generator=generator)
        scaled = (logits - logits.max()).double() / 0.7
        if top_p < 1:
            mass, order = scaled.softmax(-1).sort(descending=True)
            scaled[order[mass.cumsum(-1) - mass >= top_p]] = -torch.inf
        expected = int((scaled + gumbel(9, index, 500)).argmax())
        assert choose(logits, settings(0.7, top_p, seed=9), index) == expected


@given(st.floats(1e-300, 1e-3), st.integers(0, 2**64))
def test_tiny_temperatures_are_greedy(temperature: float, seed: int) -> None:
    assert choose(LOGITS, settings(temperature, seed=seed), 1) == 4


def test_half_precision_logits_are_read_as_float32() -> None:
    logits = torch.tensor([1.0, 1.001], dtype=torch.bfloat16)
    assert choose(logits, settings(0.0), 0) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[2] = bad
    with pytest.raises(InternalError, match="not finite"):
        choose(logits, settings(temperature), 0)
    with pytest.raises(InternalError, match="not finite"):
        choose(torch.full((3,), -torch.inf), settings(temperature), 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_are_not_chosen(temperature: float) -> None:
    """The others as if the banned ones were not there, and rows without any as before."""
    rows = LOGITS.repeat(2, 1)
    request = GenerationRequest(
        generation_id="g", token_ids=(0,), sampling=settings(temperature, seed=3), intervention=(), deadline_seconds=1.0
    )
    without = LOGITS.clone()
    without[[4, 1]] = -torch.inf
    for index in range(200):
        found = choose_all(rows, [Asked(0, request, index, (4, 1)), Asked(1, request, index)])
        assert found == [choose(each, request.sampling, index) for each in (without, LOGITS)]
    assert torch.equal(rows, LOGITS.repeat(2, 1))
