"""Objects inside of a text request: the extension `sae`, and the options of a stream; how much may be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ...domain.commands import PresetName
from ...domain.messages import Interventions, RequestedStop
from ...domain.refs import Edits, ReadingExclusions
from ...errors import BadRequestError
from .measuring.targets import NamedTokens

Tag: TypeAlias = Annotated[str, Meta(max_length=128, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]


class SaeExtension(Struct, frozen=True, forbid_unknown_fields=True):
    """`sae` in a request: this request's own intervention, and what to report about it."""

    interventions: Interventions | None = None
    steering: Edits | None = None
    baseline: bool = False
    preset: PresetName | None = None
    """Interventions that were saved under this name; `\"model\": \"default@NAME\"` means the same."""
    top_k_features: Annotated[int, Meta(ge=0, le=1024)] | None = None
    top_k_exclude: ReadingExclusions = ("sink",)
    logprobs_of: NamedTokens | None = None
    """Tokens, by id or as the text of one, whose log probability is reported at every generated position."""
    stop_when: RequestedStop | None = None
    deterministic: bool = False
    tag: Tag | None = None
    expect_position: Annotated[int, Meta(ge=0, le=2**53)] | None = None


MOST_NUMBERS = 2**23
"""Activations and log probabilities in an answer."""


def refuse_much(
    own: SaeExtension, lengths: Sequence[tuple[int, int]], *, scores: int | None, echoes: bool, saes: int
) -> None:
    """`BadRequestError` for more numbers than an answer is to hold. lengths: of each text its prompt's, and at most how
    many tokens more. scores: how many of the most probable tokens are told of each; None: no log probabilities."""
    read, made = sum(prompt for prompt, _ in lengths), sum(more for _, more in lengths)
    features = (own.top_k_features or 0) * saes * (read + made)
    probabilities = len(own.logprobs_of or ()) * made
    if scores is not None:
        probabilities += (1 + scores) * (made + read * echoes)
    if features + probabilities > MOST_NUMBERS:
        raise BadRequestError(
            f"{read} tokens of prompts and up to {made} more would be told with {features} activations and "
            f"{probabilities} log probabilities; at most {MOST_NUMBERS} in all are given in an answer: ask for fewer, "
            "or for shorter texts",
            param="sae.top_k_features" if features > probabilities else "logprobs",
        )


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    """One more chunk at the end, with the usage of the whole."""
    continuous_usage_stats: bool = False
    """Every chunk brings the usage so far."""
