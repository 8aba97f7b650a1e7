"""What each kind of run is asked for, without its texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ..refs import Exclusions, Feature, SaeId

ContextLength: TypeAlias = Annotated[int, Meta(ge=2, le=2**20)]
TokenCount: TypeAlias = Annotated[int, Meta(ge=1, le=2**50)]


class EvaluateSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the SAE's reconstruction costs the model. Texts are cut into contexts."""

    sae_id: SaeId
    max_tokens: TokenCount | None = None
    """Stop after this many; null: all texts."""
    context: ContextLength = 128
    exclude: Exclusions = ("sink",)


class ProfileSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each feature does in the texts."""

    sae_id: SaeId
    max_tokens: TokenCount | None = None
    length: ContextLength = 128
    """Tokens of a context, as `context` of an evaluation."""
    exclude: Exclusions = ("sink",)
    top: Annotated[int, Meta(ge=0, le=1000)] = 20
    context: tuple[Annotated[int, Meta(ge=0, le=1000)], Annotated[int, Meta(ge=0, le=1000)]] = (10, 5)
    """Tokens before and after the one that an example is about."""
    quantiles: Annotated[int, Meta(ge=0, le=100)] = 5
    """Intervals of equal width from 0 to the largest activation, each with examples of its own."""


MOST_VARIANTS = 256
MOST_SEEDS = 4096
MOST_FEATURES = 1024
Seed: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class SweptVariant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An intervention to compare, and what its rows are called."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    sae: dict[str, Any] = {}
    """The extension object `sae` of a text request; empty: the server's steering when the run is asked for."""


class SweepSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text for each prompt, variant and seed, and what is measured of it."""

    variants: Annotated[tuple[SweptVariant, ...], Meta(min_length=1, max_length=MOST_VARIANTS)]
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=MOST_SEEDS)] | None = None
    """null: one, by chance."""
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 16
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=MOST_FEATURES)] | None = None
    """Features whose mean activation over the new tokens is wanted."""
    sae_id: SaeId | None = None
    """The SAE of `features`; null: the only one attached that has an encoder."""


class ContrastSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features that tell two lists of texts apart; see `/api/contrast`."""

    sae_id: SaeId | None = None
    pooling: Literal["max", "mean", "last"] = "max"
    exclude: Exclusions = ("sink", "special")
    top: Annotated[int, Meta(ge=1, le=2**24)] = 20
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    label: Annotated[str, Meta(max_length=1000)] | int | float | bool | None = None
    """Of one list with labels: texts with this one are positive, all others negative. null: true, 1 and "positive" are,
    false, 0 and "negative" are not."""
