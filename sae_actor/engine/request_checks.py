"""Requests that the loaded model cannot run, refused before they wait."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import BadRequestError, ModelNotLoadedError, SAEUnsupportedError
from ..ports import GenerationRequest
from .decoding.bounds import check_ends, positions_at_most
from .decoding.grammars import CompiledGrammar
from .interventions.positions import group_of
from .model.loading import LoadedModel


def check_requests(requests: Sequence[GenerationRequest], model: LoadedModel) -> None:
    """Raises `BadRequestError`, `SAEUnsupportedError`, `ModelNotLoadedError`."""
    for request in requests:
        _check(request, model)


def _check(request: GenerationRequest, model: LoadedModel) -> None:
    run = len(request.given)
    sampling, prompt, scoring = request.sampling, len(request.token_ids), request.scoring
    if not 1 <= prompt <= run <= model.facts.context_length:
        raise BadRequestError(f"a prompt of {run} tokens; the model's context is {model.facts.context_length}")
    given = request.token_ids if scoring is None else (*request.token_ids, *scoring.continuation, *scoring.targets)
    if not all(0 <= each < model.tokenizer.vocabulary for each in (*given, *request.logprobs_of)):
        raise BadRequestError(f"a token id is outside the vocabulary of {model.tokenizer.vocabulary}", param="prompt")
    if sampling.max_tokens < 0:
        raise BadRequestError("max_tokens must be at least 0", param="max_tokens")
    if not (0 <= sampling.temperature < math.inf and 0 <= sampling.top_p <= 1):
        raise BadRequestError("temperature must be at least 0, top_p between 0 and 1")
    _check_processors(request, model)
    if request.forced is not None and not all(
        0 <= each < model.tokenizer.vocabulary for each in request.forced or (-1,)
    ):
        raise BadRequestError(
            f"a forced token is outside the vocabulary of {model.tokenizer.vocabulary}, or there is none"
        )
    counts = (request.logprobs, request.prompt_logprobs)
    if not all(0 <= most <= model.tokenizer.vocabulary for most in counts if most is not None):
        raise BadRequestError(f"logprobs must be between 0 and {model.tokenizer.vocabulary}", param="logprobs")
    needed, most = model.cache_size.of(positions_at_most(request, model.facts.context_length)), model.cache_bytes
    if needed > most:
        raise BadRequestError(
            f"the generation's KV cache may take {needed} bytes, all together have {most}; request fewer tokens",
            param="max_tokens", needed_bytes=needed, available_bytes=most,
        )  # fmt: skip
    if request.deterministic and not model.facts.can_be_deterministic:
        raise SAEUnsupportedError("the model's kernels are not deterministic", param="sae.deterministic")
    check_ends(request, model.tokenizer)
    if not all(sampling.stop):
        raise BadRequestError("a stop string is empty", param="stop")
    for sae in request.intervention:
        for edit in sae.steering:
            group_of(edit, prompt, request.turns)


def most_beside(request: GenerationRequest, model: LoadedModel, running: int, *, compared: bool) -> int:
    """How many such texts run side by side, of at most `running`. `BadRequestError` if there is no room for the two
    that are `compared`."""
    needed = model.cache_size.of(positions_at_most(request, model.facts.context_length))
    if compared and 2 * needed > model.cache_bytes:
        raise BadRequestError(
            f"the text and its baseline may take {2 * needed} bytes of keys and values, all together have "
            f"{model.cache_bytes}; score it without a baseline",
            param="variants", needed_bytes=2 * needed, available_bytes=model.cache_bytes,
        )  # fmt: skip
    return max(2, min(running, model.cache_bytes // max(1, needed)))


def _check_processors(request: GenerationRequest, model: LoadedModel) -> None:
    """What changes or rules out tokens."""
    sampling = request.sampling
    if sampling.top_k < 0 or not 0 <= sampling.min_p <= 1 or not 0 < sampling.repetition_penalty < math.inf:
        raise BadRequestError("top_k must be at least 0, min_p between 0 and 1, repetition_penalty above 0")
    if not math.isfinite(sampling.frequency_penalty) or not math.isfinite(sampling.presence_penalty):
        raise BadRequestError("frequency_penalty and presence_penalty must be finite")
    if not all(0 <= token < model.tokenizer.vocabulary and math.isfinite(by) for token, by in sampling.logit_bias):
        raise BadRequestError(
            f"a biased token is outside the vocabulary of {model.tokenizer.vocabulary}", param="logit_bias"
        )
    if (sampling.response_format is None) != (request.grammar is None):
        raise BadRequestError("a response format and its grammar come together", param="response_format")
    if isinstance(request.grammar, CompiledGrammar) and request.grammar.tokens is not model.grammars.tokens:
        raise ModelNotLoadedError("the model was replaced since the schema was compiled; send the request again")
