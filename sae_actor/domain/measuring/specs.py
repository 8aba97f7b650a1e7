"""What each kind of run is asked for, without its texts."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ..refs import Exclusions, SaeId

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
