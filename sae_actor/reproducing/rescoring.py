"""The tokens of an answer scored one by one, and how near each was to the one chosen here.

A generation is run along its logged tokens (teacher forcing), so that every token is judged after the same tokens as in
the log. If the same tokens come out by themselves, that run scores them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from ..domain.events import Sampling
from ..domain.refs import ModelFacts
from ..ports import Finished, GenerationRequest, ScoredToken, Token
from .testbed import NotComparable, Testbed

_RULED_OUT = -9999.0
"""Log probability of a token that cannot come."""
_Take: TypeAlias = Callable[[Token], None]


class TokenChoice(NamedTuple):
    """Where another token would be chosen here."""

    at: int
    """Of the token in the answer, from 0."""
    logged: int
    here: int
    gap: float
    """Logits by which the one here is ahead of the logged one, noise and temperature included. If `top_k`, `top_p` or
    `min_p` drops the logged one: those that would bring it in, if that is more."""


async def scored(bench: Testbed, request: GenerationRequest) -> tuple[Finished, list[float]]:
    """The end of the generation, and the log probability of each of its tokens."""
    found: list[float] = []
    end = await bench.run(replace(request, logprobs=0), lambda token: found.append(_own(token).logprob))
    return end, found


async def forced(bench: Testbed, request: GenerationRequest, tokens: Sequence[int]) -> list[float]:
    """Log probability of each of `tokens` after those before it."""
    found: list[float] = []
    await _along(bench, request, tokens, 0, lambda token: found.append(_own(token).logprob))
    return found


async def choices(
    bench: Testbed, request: GenerationRequest, tokens: Sequence[int], model: ModelFacts
) -> tuple[list[float], list[TokenChoice]]:
    """Log probability of each token, and where another one would be chosen here, by the loaded model."""
    sampling = request.sampling
    greedy = sampling.temperature == 0
    processed = _is_processed(request)
    held_off = {*model.end_ids, *sampling.stop_token_ids} if sampling.min_tokens else set()
    assert model.vocabulary is not None
    size = 1 + len(held_off) if greedy else model.vocabulary
    found: list[float] = []
    others: list[TokenChoice] = []

    def take(token: Token) -> None:
        index, own = len(found), _own(token)
        found.append(own.logprob)
        if own.logprob <= _RULED_OUT:
            others.append(TokenChoice(index, own.id, token.top[0].id, math.inf))
            return
        noise = None if greedy else _noise(sampling.seed, index, size)
        top = token.top
        later = tuple(each for each in top if each.id not in held_off and each.logprob > _RULED_OUT)
        if index < sampling.min_tokens and later:  # a grammar may leave an end alone
            top = later
            if own.id in held_off:  # never chosen so early, however probable
                others.append(TokenChoice(index, own.id, top[0].id, math.inf))
                return
        here, gap = chosen(top, own, sampling, noise)
        if here != own.id:
            others.append(TokenChoice(index, own.id, here, gap))

    await _along(bench, request, tokens, size, take, processed=processed)
    return await forced(bench, request, tokens) if processed else found, others


def _is_processed(request: GenerationRequest) -> bool:
    """Tokens are chosen from other logits than the model's own: penalties, bias or a grammar changed them."""
    sampling = request.sampling
    penalties = sampling.repetition_penalty != 1, sampling.frequency_penalty, sampling.presence_penalty
    return any(penalties) or bool(sampling.logit_bias) or request.grammar is not None


def chosen(
    top: Sequence[ScoredToken], own: ScoredToken, sampling: Sampling, noise: Sequence[float] | None
) -> tuple[int, float]:
    """The token that is chosen, and how many logits it is ahead of `own`.

    top: every candidate token, best first (greedy: the best one is enough). noise: by token id; None for greedy.
    """
    best = top[0]
    if noise is None:
        gap = best.logprob - own.logprob
        return (best.id, gap) if gap > 0 else (own.id, 0.0)
    scaled = [(each.logprob - best.logprob) / sampling.temperature for each in top]
    first_k = _top_k(scaled, sampling.top_k)
    mass, before = _nucleus(scaled[:first_k], sampling.top_p)
    least = math.log(sampling.min_p) if sampling.min_p else -math.inf
    kept = sum(each >= least for each in scaled[:mass])
    scores = [scaled[place] + noise[top[place].id] for place in range(kept)]
    first = max(range(kept), key=scores.__getitem__)
    if top[first].id == own.id:
        return own.id, 0.0
    mine = (own.logprob - best.logprob) / sampling.temperature + noise[own.id]
    gap = scores[first] - mine
    place = next(place for place, each in enumerate(top) if each.id == own.id)
    if place >= first_k:
        gap = max(gap, scaled[first_k - 1] - scaled[place])
    elif place >= mass:
        # It comes in past the last one kept, or when those before it lose mass to the others.
        gap = max(gap, min(scaled[mass - 1] - scaled[place], _odds(before[place]) - _odds(sampling.top_p)))
    if place >= kept:
        gap = max(gap, least - scaled[place])
    return top[first].id, max(gap, 0.0) * sampling.temperature


def _odds(mass: float) -> float:
    """Logits by which what has this mass is ahead of the rest."""
    return math.log(mass / (1 - mass)) if mass < 1 else math.inf


def _top_k(scaled: Sequence[float], top_k: int) -> int:
    """How many tokens `top_k` keeps; what is as probable as the last of them is kept too."""
    if not 0 < top_k < len(scaled):
        return len(scaled)
    return sum(each >= scaled[top_k - 1] for each in scaled)


def _nucleus(scaled: Sequence[float], top_p: float) -> tuple[int, list[float]]:
    """How many of the most probable tokens are kept, and the mass of those before each."""
    weights = [math.exp(each) for each in scaled]
    total, mass, before = sum(weights), 0.0, []
    for weight in weights:
        before.append(mass / total)
        mass += weight
    kept = len(weights) if top_p >= 1 else next((n for n, m in enumerate(before) if n and m >= top_p), len(weights))
    return kept, before


async def _along(
    bench: Testbed,
    request: GenerationRequest,
    tokens: Sequence[int],
    most: int,
    take: _Take,
    *,
    processed: bool = False,
) -> None:
    """Run along `tokens`, with the `most` most probable ones next to each, by the model or by what was made of its
    logits. Raises `NotComparable`."""
    sampling = request.sampling
    # If the log continued after an end token, so does this.
    settings = replace(sampling, max_tokens=len(tokens), stop=(), stop_token_ids=(), min_tokens=0)
    along = replace(
        request, sampling=settings, forced=tuple(tokens), logprobs=most, stop_when=None, processed_scores=processed
    )
    if not processed:  # a grammar binds what is not reasoning
        along = replace(along, reasoning=None)
    end = await bench.run(along, take)
    if end.token_ids != tuple(tokens):
        raise NotComparable("its tokens could not all be scored")


def _own(token: Token) -> ScoredToken:
    assert token.scored is not None
    return token.scored


def _noise(seed: int, index: int, size: int) -> list[float]:
    from ..engine.decoding.sampler import gumbel  # noqa: PLC0415 - imports torch, which the bench has by now

    noise: list[float] = gumbel(seed, index, size).tolist()
    return noise
