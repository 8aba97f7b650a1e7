"""Log probabilities of the candidates for the next token."""

from __future__ import annotations

from torch import Tensor

from ...ports import ScoredToken
from ..tokens.token_text import TokenTexts

LEAST = -9999.0
"""Replaces −inf, which JSON does not have."""


def scored(logits: Tensor, chosen: int, most: int, pieces: TokenTexts) -> tuple[ScoredToken, tuple[ScoredToken, ...]]:
    """The chosen token, and the `most` most probable ones, best first. `logits` [vocabulary], read as float32."""
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(min(most, len(logprobs)))
    own = _scored(chosen, float(logprobs[chosen]), pieces)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return own, tuple(_scored(token, logprob, pieces) for token, logprob in pairs)


def _scored(token: int, logprob: float, pieces: TokenTexts) -> ScoredToken:
    text, written = pieces(token)
    return ScoredToken(id=token, text=text, bytes=written, logprob=max(logprob, LEAST))
