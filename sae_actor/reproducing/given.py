"""Texts that were scored: scored again, next to the baseline, and compared with what is on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ..domain.events import ScoreSummary
from ..generations import score_summary
from ..ports import Finished, GenerationRequest
from .testbed import NotComparable, Testbed

View = dict[str, Any]


async def rescored(bench: Testbed, request: GenerationRequest) -> tuple[Finished, Finished]:
    """The text under its intervention and under none. Raises `NotComparable`."""
    bare = replace(request, intervention=(), turns=(), deterministic=False)
    own, without = await bench.score([request, bare], baseline=1)
    return own, without


def compared(logged: ScoreSummary, again: Finished) -> View:
    """Both results, and how many nats a token they are `apart`."""
    here = score_summary(again)
    if here is None or here.counted != logged.counted:
        raise NotComparable("its tokens could not all be scored")
    apart = [abs(here.sum_logprob - logged.sum_logprob) / max(1, here.counted)]
    if logged.kl_from_baseline is not None and here.kl_from_baseline is not None:
        apart.append(abs(here.kl_from_baseline - logged.kl_from_baseline))
    if logged.kl_from_baseline is None:  # it was not compared with one
        here = replace(here, kl_from_baseline=None)
    return {"logged": _plain(logged), "here": _plain(here), "apart": max(apart)}


def differences(own: Finished, without: Finished) -> View | None:
    """Log probabilities of the counted tokens under the intervention against those under none; None if they are the
    same, since there is none."""
    apart = [abs(a - b) for a, b in zip(_counted(own), _counted(without), strict=True)]
    if own == without or not apart:
        return None
    return {"largest": max(apart), "mean": sum(apart) / len(apart)}


def _counted(end: Finished) -> Sequence[float]:
    first = end.receipt.tokens_prompt if end.token_ids else 1
    return [token.logprob for token in end.prompt[first:] if token.logprob is not None]


def _plain(score: ScoreSummary) -> View:
    return {name: getattr(score, name) for name in score.__struct_fields__}
