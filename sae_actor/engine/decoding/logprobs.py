"""Log probabilities of the candidates for the next token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...errors import InternalError
from ...ports import PromptToken, ScoredToken
from ..tokens.token_text import TokenTexts

LEAST = -9999.0
"""Replaces −inf, which JSON does not have."""
MOST_VALUES = 16 * 2**20
"""Log probabilities in memory at a time: long prompts are scored in groups of rows."""


def scored(logits: Tensor, chosen: int, most: int, pieces: TokenTexts) -> tuple[ScoredToken, tuple[ScoredToken, ...]]:
    """The chosen token, and the `most` most probable ones, best first. `logits` [vocabulary], read as float32."""
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(min(most, len(logprobs)))
    own = _scored(chosen, float(logprobs[chosen]), pieces)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return own, tuple(_scored(token, logprob, pieces) for token, logprob in pairs)


def scored_prompt(logits: Tensor, following: Sequence[int], most: int, pieces: TokenTexts) -> Iterator[PromptToken]:
    """The prompt's tokens `following`, each scored by the logits before it: [their number, vocabulary]. `InternalError`
    if those are not finite."""
    rows = max(1, MOST_VALUES // logits.shape[-1])
    for start in range(0, len(following), rows):
        some = following[start : start + rows]
        logprobs = logits[start : start + len(some)].float().log_softmax(dim=-1)
        chosen = torch.tensor(some, device=logits.device)[:, None]
        own = logprobs.gather(1, chosen)[:, 0]
        if bool(own.isnan().any()):
            raise InternalError("the model's logits are not finite")
        best = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
        found = zip(some, own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
        for token, logprob, ids, values in found:
            top = tuple(_scored(*each, pieces) for each in zip(ids, values, strict=True))
            yield prompt_token(token, max(logprob, LEAST), top, pieces)


def prompt_token(token: int, logprob: float | None, top: tuple[ScoredToken, ...], pieces: TokenTexts) -> PromptToken:
    text, written = pieces(token)
    return PromptToken(id=token, text=text, bytes=written, logprob=logprob, top=top)


def _scored(token: int, logprob: float, pieces: TokenTexts) -> ScoredToken:
    text, written = pieces(token)
    return ScoredToken(id=token, text=text, bytes=written, logprob=max(logprob, LEAST))
