"""What a request may take: tokens, positions of the KV cache, and the tokens that end it."""

from __future__ import annotations

from ...errors import BadRequestError
from ...ports import GenerationRequest
from ..tokens.tokenizer import Tokenizer
from .kv_cache import capacity_for


def ending_ids(request: GenerationRequest, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that `min_tokens` suppresses: all that end a generation, the model's own even if they are ignored."""
    return tokenizer.end_ids.union(request.sampling.stop_token_ids)


def check_ends(request: GenerationRequest, tokenizer: Tokenizer) -> None:
    """`BadRequestError` for unknown stop tokens, or if they leave `min_tokens` none to choose."""
    if not all(0 <= each < tokenizer.vocabulary for each in request.sampling.stop_token_ids):
        raise BadRequestError(
            f"a stop token is outside the vocabulary of {tokenizer.vocabulary}", param="stop_token_ids"
        )
    if request.sampling.min_tokens and len(ending_ids(request, tokenizer)) >= tokenizer.vocabulary:
        raise BadRequestError("every token ends the generation; min_tokens leaves none to choose", param="min_tokens")


def tokens_at_most(request: GenerationRequest, context_length: int) -> int:
    """Tokens of the answer: as many as requested, or as the model's context holds; none of a text to score."""
    if request.scoring is not None:
        return 0
    most = request.sampling.max_tokens if request.forced is None else len(request.forced)
    return min(most, context_length - len(request.token_ids) + 1)


def positions_at_most(request: GenerationRequest, context_length: int) -> int:
    """Positions of keys and values that a request takes room for: the last token of an answer is never run."""
    return capacity_for(len(request.given) + max(1, tokens_at_most(request, context_length)) - 1)
