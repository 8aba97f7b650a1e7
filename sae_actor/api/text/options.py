"""Objects inside of a text request: the extension `sae`, and the options of a stream; how much may be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ...domain.commands import PresetName
from ...domain.messages import Interventions, RequestedStop
from ...domain.refs import Edits, ReadingExclusions
from ...domain.state import AttachmentState
from ...errors import BadRequestError
from .measuring.detailed import NamedFeatures
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
    details: bool = False
    """Report in `sae.positions` what was done at each position: the edits that held, how far the activation was moved,
    and the features that the edits name, before and after."""
    details_of: NamedFeatures | None = None
    """With `details`: report these features too, by number (of the only SAE that can be read) or with `sae_id`."""
    stop_when: RequestedStop | None = None
    deterministic: bool = False
    tag: Tag | None = None
    expect_position: Annotated[int, Meta(ge=0, le=2**53)] | None = None


LACKING = ("stop_when", "top_k_features", "top_k_exclude", "logprobs_of", "tag")
"""Fields of the extension object that mean nothing in a variant."""


def check_variants(
    variants: Iterable[tuple[str, SaeExtension]], where: str, what: str, lacking: Sequence[str] = LACKING
) -> None:
    """`BadRequestError` for two variants of one name, and for fields that a variant cannot have. where: their member;
    what: as in "not supported where texts are scored"."""
    names, usual = set[str](), SaeExtension()
    for at, (name, own) in enumerate(variants):
        if name in names:
            raise BadRequestError(f"two variants are called {name!r}", param=f"{where}[{at}].name")
        names.add(name)
        for field in lacking:
            if getattr(own, field) != getattr(usual, field):
                param = f"{where}[{at}].sae.{field}"
                raise BadRequestError(f"{param}: not supported {what}", param=param)


MOST_NUMBERS = 2**23
"""Activations, log probabilities and details in an answer."""


def refuse_much(
    own: SaeExtension,
    lengths: Sequence[tuple[int, int]],
    *,
    scores: int | None,
    echoes: bool,
    attached: Sequence[AttachmentState],
) -> None:
    """`BadRequestError` for more numbers than an answer is to hold. lengths: of each text its prompt's, and at most how
    many tokens more. scores: how many of the most probable tokens each position reports; None: no log probabilities."""
    read, made = sum(prompt for prompt, _ in lengths), sum(more for _, more in lengths)
    features = (own.top_k_features or 0) * len(attached) * (read + made)
    details = (1 + len(own.details_of or ()) + _edits(own, attached)) * (read + made) if own.details else 0
    probabilities = len(own.logprobs_of or ()) * made
    if scores is not None:
        probabilities += (1 + scores) * (made + read * echoes)
    told = {"sae.top_k_features": features, "logprobs": probabilities, "sae.details": details}
    if sum(told.values()) > MOST_NUMBERS:
        raise BadRequestError(
            f"{read} tokens of prompts and up to {made} more would be told with {features} activations, "
            f"{probabilities} log probabilities and {details} details; at most {MOST_NUMBERS} in all are given in an "
            "answer: ask for fewer, or for shorter texts",
            param=max(told, key=told.__getitem__),
        )


def _edits(own: SaeExtension, attached: Sequence[AttachmentState]) -> int:
    """Edits whose features the details report; a preset counts as the server's steering."""
    if own.baseline:
        return 0
    if own.steering is not None:
        return len(own.steering)
    return sum(len(each.steering) for each in (attached if own.interventions is None else own.interventions))


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    """One more chunk at the end, with the usage of the whole."""
    continuous_usage_stats: bool = False
    """Every chunk brings the usage so far."""
