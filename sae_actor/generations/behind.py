"""What runs ask of a text that is there: how probable it is, and what an SAE reads in it. Behind everything else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from msgspec import Struct

from ..domain.chats import MessageSpan
from ..domain.events import Sampling, ScoreSummary
from ..domain.refs import Intervention
from ..errors import InternalError, SAENotAttachedError
from ..limits import NO_DEADLINE
from ..ports import Activations, Engine, Finished, GenerationRequest, Scoring, Watch
from .records import failure, score_summary


class Continued(Struct, frozen=True, kw_only=True):
    """A text, what follows it, and the intervention under which they are read."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    intervention: Intervention = ()
    turns: Sequence[MessageSpan] = ()
    deterministic: bool = False


async def score_behind(engine: Engine, text: Continued) -> ScoreSummary:
    """The log probability of the continuation. Raises the engine's errors; `SAENotAttachedError` if an SAE is gone."""
    summary = score_summary(await _ended(engine, _request(text)))
    if summary is None:
        raise InternalError("the text was not scored")
    return summary


async def read_behind(engine: Engine, text: Continued, watch: Watch) -> Activations:
    """What is watched at every position, the last one too. Raises as `score_behind`."""
    ended = await _ended(engine, _request(text, watch))
    if len(ended.activations) != 1:
        raise InternalError("the text was run without its activations")
    return ended.activations[0]


def _request(text: Continued, *watched: Watch) -> GenerationRequest:
    last = bool(watched)
    return GenerationRequest(
        generation_id="run",
        token_ids=text.prompt,
        sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=len(text.continuation) + last, seed=0),
        intervention=text.intervention,
        turns=tuple(text.turns),
        deadline_seconds=NO_DEADLINE,
        prompt_logprobs=0,
        scoring=Scoring(continuation=text.continuation, runs_last=last),
        watched=watched,
        background=True,
        deterministic=text.deterministic,
    )


async def _ended(engine: Engine, request: GenerationRequest) -> Finished:
    """Asked for again if it gave way to another text."""
    while True:
        (stream,) = engine.score([request])
        async with contextlib.aclosing(stream) as items:
            ended = await anext(item async for item in items if isinstance(item, Finished))
        if ended.reason == "intervention_removed":
            raise SAENotAttachedError("an SAE was detached before the text was read")
        if ended.reason == "error":
            raise failure(ended)
        if ended.reason != "cancelled":
            return ended
