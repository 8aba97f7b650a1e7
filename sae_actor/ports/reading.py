"""What is read of a prompt besides the activations of each token."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

Pooling: TypeAlias = Literal["max", "mean", "last"]


class Pooled(Struct, frozen=True):
    """Every feature of an SAE over the counted positions of a prompt, as plain arrays: there may be many features."""

    values: bytes
    """float32 [d_sae]: the largest activation, the mean, or the one at the last position. Zeros where no position is
    counted."""
    active: bytes
    """int32 [d_sae]: at how many of the counted positions the feature is above 0."""


class TokenScore(Struct, frozen=True):
    """A token that may come next, with its natural log probability."""

    token_id: int
    token: str
    logprob: float
