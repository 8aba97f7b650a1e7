"""Log probabilities of the candidates for the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InternalError
from ...ports import PromptToken, ScoredToken
from ..tokens.token_text import TokenTexts

LEAST = -9999.0
"""Replaces −inf, which JSON does not have."""
MOST_VALUES = 16 * 2**20
"""Log probabilities in memory at a time: long prompts are scored in groups of rows."""


def scored(
    logits: Tensor, chosen: int, most: int, pieces: TokenTexts, named: Sequence[int] = ()
) -> tuple[ScoredToken, tuple[ScoredToken, ...], tuple[ScoredToken, ...]]:
    """The chosen token, the `most` most probable ones, best first, and those of `named`. `logits` [vocabulary], read as
    float32."""
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(min(most, len(logprobs)))
    own = scored_token(chosen, float(logprobs[chosen]), pieces)
    told = best_of(named, logprobs[list(named)].tolist(), pieces) if named else ()
    return own, best_of(best.indices.tolist(), best.values.tolist(), pieces), told


def best_of(ids: Sequence[int], values: Sequence[float], pieces: TokenTexts) -> tuple[ScoredToken, ...]:
    """Tokens with their log probabilities."""
    return tuple(scored_token(*each, pieces) for each in zip(ids, values, strict=True))


def prompt_token(token: int, logprob: float | None, top: tuple[ScoredToken, ...], pieces: TokenTexts) -> PromptToken:
    text, written = pieces(token)
    return PromptToken(id=token, text=text, bytes=written, logprob=logprob, top=top)


def scored_token(token: int, logprob: float, pieces: TokenTexts) -> ScoredToken:
    text, written = pieces(token)
    return ScoredToken(id=token, text=text, bytes=written, logprob=max(logprob, LEAST))


def finite(logits: Tensor) -> Tensor:
    """`logits` [vocabulary]; `InternalError` if they hold a NaN, or nothing but −inf."""
    if not bool(torch.isfinite(logits.max())):  # torch's max returns a NaN if there is one
        raise InternalError("the model's logits are not finite")
    return logits
