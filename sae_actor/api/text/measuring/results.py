"""Answers of `/api/score`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from ....errors import InternalError, SAENotAttachedError
from ....generations import Completed, RunningGeneration, score_summary
from ....ports import ScoredToken
from ...problems import ProblemDetails
from ..answers import AppliedIntervention
from ..replies import applied
from .detailed import Labels, positions_of
from .inputs import ContinuedInput, ReadInput


class ScoredCandidate(Struct, frozen=True, kw_only=True):
    """A token that could stand at a position."""

    token: str
    token_id: int
    logprob: float


class ScoredTarget(ScoredCandidate, frozen=True, kw_only=True):
    """A target as the token after the text."""

    logit: float
    rank: int
    """1: no token is more probable."""


class ScoreResult(Struct, frozen=True, kw_only=True):
    """One input under one variant."""

    input: int
    """Index of the input."""
    id: str | UnsetType = UNSET
    variant: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    """Of each token given those before it; null for the first."""
    scored: tuple[int, int]
    """[first, stop): the tokens that count below: the continuation; without one, all but the first."""
    sum_logprob: float
    ce: float | None
    """Mean of -logprob; null if no token counts."""
    perplexity: float | None
    """exp(ce); null if it is too large for a number."""
    kl_from_baseline: float | None
    """Mean of KL(baseline || variant) in nats; null without a baseline, or if it is infinite."""
    is_greedy: bool
    """No token was more probable than the counted one, at each of them."""
    targets: tuple[ScoredTarget, ...] | UnsetType = UNSET
    top_logprobs: tuple[tuple[ScoredCandidate, ...] | None, ...] | UnsetType = UNSET
    """The most probable tokens in place of each token, best first; one more list than tokens, for what follows."""
    sae: AppliedIntervention


class ScoreAnswer(Struct, frozen=True, kw_only=True):
    results: tuple[ScoreResult, ...]
    """By input, then by variant."""


class ScoreFault(Struct, frozen=True, kw_only=True):
    """The last line of an answer in lines that could not be completed."""

    error: ProblemDetails


class AskedScore(Struct, frozen=True, kw_only=True):
    """What a result answers."""

    at: int
    given: ContinuedInput
    read: ReadInput
    variant: str
    targets: bool
    top: int
    labels: Labels | None = None
    """Of the features in its details; None: it has none."""


def result(asked: AskedScore, text: RunningGeneration, done: Completed) -> ScoreResult:
    """Raises `SAENotAttachedError` if an SAE was detached before it was scored."""
    finished, summary = done.finished, score_summary(done.finished)
    if finished.reason == "intervention_removed":
        raise SAENotAttachedError("an SAE was detached before the text was scored")
    if summary is None or finished.scores is None:
        raise InternalError("the text was not scored")
    ids = asked.read.token_ids
    ce = -summary.sum_logprob / summary.counted if summary.counted else None
    return ScoreResult(
        input=asked.at,
        id=UNSET if asked.given.id is None else asked.given.id,
        variant=asked.variant,
        token_ids=ids,
        tokens=asked.read.tokens,
        logprobs=tuple(token.logprob for token in finished.prompt),
        scored=(len(ids) - summary.counted, len(ids)),
        sum_logprob=summary.sum_logprob,
        ce=ce,
        perplexity=None if ce is None else _exp(ce),
        kl_from_baseline=summary.kl_from_baseline,
        is_greedy=summary.is_greedy,
        targets=tuple(
            ScoredTarget(token=each.text, token_id=each.id, logprob=each.logprob, logit=each.logit, rank=each.rank)
            for each in finished.scores.targets
        )
        if asked.targets
        else UNSET,
        top_logprobs=(None, *(_listed(token.top) for token in finished.prompt[1:]), _listed(finished.scores.top))
        if asked.top
        else UNSET,
        sae=applied(text, done, positions=UNSET if asked.labels is None else positions_of((finished,), asked.labels)),
    )


def _listed(top: Sequence[ScoredToken]) -> tuple[ScoredCandidate, ...]:
    return tuple(ScoredCandidate(token=each.text, token_id=each.id, logprob=each.logprob) for each in top)


def _exp(value: float) -> float | None:
    try:
        return math.exp(value)
    except OverflowError:
        return None
