"""The recorded end of a generation."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from ..actor.performer import problem
from ..domain import events as ev
from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..errors import SAEError, TooLargeError, from_code
from ..ports import Finished, Token


class CutOff(Finished, frozen=True, kw_only=True):
    """The end of a generation that the engine did not report in time: its edited positions are unknown."""


def cut_off(tokens_prompt: int, made: Sequence[Token]) -> CutOff:
    """The end of a generation that was cancelled after these tokens."""
    unknown = ev.Receipt(
        tokens_prompt=tokens_prompt,
        tokens_generated=len(made),
        tokens_edited=0,
        tokens_excluded=0,
        mean_relative_norm=0.0,
    )
    return CutOff(
        reason="cancelled",
        receipt=unknown,
        token_ids=tuple(token.id for token in made),
        text="".join(token.text for token in made),
    )


def record_of(
    started: Event, payload: GenerationStarted, token_ids: Sequence[int], ended: Finished | SAEError
) -> GenerationFinished:
    """GenerationFinished without the text and its tokens. token_ids: the prompt's."""
    salt = secrets.token_hex(16)
    record = GenerationFinished(
        generation_id=payload.generation_id,
        started_position=started.position,
        finish_reason="error",
        intervention_sha256=payload.intervention_sha256,
        salt=salt,
        prompt_sha256=token_digest(salt, token_ids),
    )
    if isinstance(ended, SAEError):
        return replace(record, error=problem(ended))
    return replace(
        record,
        finish_reason=ended.reason,
        receipt=None if isinstance(ended, CutOff) else ended.receipt,
        edited=ended.edited,
        excluded=ended.excluded,
        batch=ended.batch,
        output_sha256=token_digest(salt, ended.token_ids),
        score=score_summary(ended),
        error=problem(failure(ended)) if ended.reason == "error" else None,
    )


def score_summary(ended: Finished) -> ev.ScoreSummary | None:
    """What the scores come to; None without any."""
    scores = ended.scores
    if scores is None:
        return None
    first = ended.receipt.tokens_prompt if ended.token_ids else 1
    counted = [token.logprob for token in ended.prompt[first:] if token.logprob is not None]
    kl = scores.kl if scores.kl is not None and math.isfinite(scores.kl) else None
    return ev.ScoreSummary(
        counted=len(counted), sum_logprob=math.fsum(counted), is_greedy=scores.greedy, kl_from_baseline=kl
    )


def with_text(record: GenerationFinished, token_ids: tuple[int, ...], ended: Finished | SAEError) -> GenerationFinished:
    """The record with the fields that `[audit] record_text` adds."""
    record = replace(record, prompt_token_ids=token_ids)
    if isinstance(ended, SAEError):
        return record
    return replace(record, output_token_ids=ended.token_ids, text=ended.text)


LEFT_OUT = (("prompt_token_ids",), ("prompt_token_ids", "output_token_ids", "text"))
"""Fields to leave out of a record that is too large for an event. If the first group is not enough, the second."""


def without(record: GenerationFinished, names: Sequence[str], error: TooLargeError) -> GenerationFinished:
    """The record without these fields, and with the reason."""
    why = replace(problem(error), fields={**error.fields, "left_out": list(names)})
    return replace(record, left_out=why, **dict.fromkeys(names))


def failure(ended: Finished) -> SAEError:
    """The error that a generation ended with."""
    return from_code(ended.error_code or "internal", ended.error_detail or "the generation failed")


def token_digest(salt: str, token_ids: Sequence[int]) -> str:
    """sha256 of salt ‖ token ids (little-endian u32 each), as GenerationFinished records it."""
    return hashlib.sha256(bytes.fromhex(salt) + b"".join(each.to_bytes(4, "little") for each in token_ids)).hexdigest()
