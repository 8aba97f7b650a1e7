"""Results as structs."""

from __future__ import annotations

from msgspec import Struct


class HeldOut(Struct, frozen=True, kw_only=True):
    """The same of the texts that were held out, and how well the row's threshold sorts them."""

    mean_a: float
    mean_b: float
    difference: float
    frac_active_a: float
    frac_active_b: float
    auroc: float
    true_positive_rate: float
    """Share of the positive texts at or above `threshold`."""
    false_positive_rate: float
    """Share of the negative ones."""


class ContrastedFeature(Struct, frozen=True, kw_only=True):
    """One feature in two lists of texts, each text pooled: `a` are the positive ones, `b` the negative ones."""

    feature: int
    mean_a: float
    mean_b: float
    difference: float
    """`mean_a` − `mean_b`"""
    frac_active_a: float
    """Share of the texts whose pooled activation is above 0."""
    frac_active_b: float
    auroc: float
    """P(a > b) + ½ P(a = b)"""
    threshold: float
    """Maximises the share of positive texts at or above it less that of negative ones (Youden); the largest of those
    that do."""
    density: float
    """Share of all counted tokens at which the feature is above 0."""
    label: str | None = None
    held_out: HeldOut | None = None


def held_out_of(texts: int, share: float) -> int:
    """How many of so many texts are held out: the share, rounded, at least one. All of them leave none to choose by."""
    return max(1, round(texts * share))
