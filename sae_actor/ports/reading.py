"""What is read of a text besides the activations of each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

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


class FeatureChange(Struct, frozen=True, kw_only=True):
    """A feature at one position, in one forward pass."""

    sae_id: str
    feature: int
    before: float
    """Its activation for what arrives at the SAE's hook point, before any edit there."""
    after: float
    """For what the model goes on with: what all edits at that hook point left there. A transcoder writes elsewhere, so
    its own edits change nothing here."""
    label: str | UnsetType = UNSET
    """Of the feature, if it has one; who shows it adds it."""


class PositionDetails(Struct, frozen=True, kw_only=True):
    """What an intervention did at one position."""

    position: int
    """Index among all tokens, the prompt's and the new ones, from 0."""
    edits: tuple[tuple[str, int], ...]
    """The edits that held: the SAE's id, and the index into its steering."""
    relative_norm: float
    """|difference written| / |x|, x being what arrived at the hook point; 0 if nothing was written. If it was at
    several hook points, the mean of them."""
    features: tuple[FeatureChange, ...] | UnsetType = UNSET
    """The watched features; absent if there are none."""


def labelled_changes(
    positions: tuple[PositionDetails, ...], labels: Mapping[str, Mapping[int, str]]
) -> tuple[PositionDetails, ...]:
    """The same with the labels of their features; `labels` by SAE."""
    if not any(labels.values()):
        return positions
    return tuple(
        each
        if isinstance(each.features, UnsetType)
        else replace(
            each,
            features=tuple(
                replace(one, label=labels.get(one.sae_id, {}).get(one.feature, UNSET)) for one in each.features
            ),
        )
        for each in positions
    )
