"""Strengths in other units, resolved to raw ones before anything is logged or applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from msgspec.structs import replace

from ..domain.refs import Edit
from ..errors import BadRequestError, SAEUnsupportedError
from .autoencoder import SAE

FACTORS = frozenset({"scale", "project"})
"""Methods whose strength is a factor and has no unit."""


def resolve_units(
    sae: SAE,
    edits: Sequence[Edit],
    *,
    maxima: Mapping[int, float] | None = None,
    median_norm: float | None = None,
) -> tuple[Edit, ...]:
    """`edits` with raw strengths, for d the effective decoder row and v = d / |d|.

        unit   s·v: s / |d|            max    s · maximum of the feature · d
        norm   s · median |x| · v: s · median_norm / |d|

    `set_projection` is along v already: there unit is s, norm s · median_norm, max s · maximum · |d|.
    Raises `BadRequestError` for a unit of a factor, `SAEUnsupportedError` if the statistic is missing, or |d|
    changes from row to row (normalisation by the row's own statistics) or is 0.
    """
    return tuple(edit if edit.unit == "raw" else _resolved(sae, edit, maxima or {}, median_norm) for edit in edits)


def _resolved(sae: SAE, edit: Edit, maxima: Mapping[int, float], median_norm: float | None) -> Edit:
    if edit.method in FACTORS:
        raise BadRequestError(f"the strength of {edit.method} is a factor, without a unit", param="unit")
    amount = edit.strength
    if edit.unit == "max":
        if edit.feature not in maxima:
            raise SAEUnsupportedError(f"no maximum is recorded for feature {edit.feature}", feature=edit.feature)
        amount *= maxima[edit.feature]
    elif edit.unit == "norm":
        if median_norm is None:
            raise SAEUnsupportedError("no median norm is recorded for the hook point")
        amount *= median_norm
    along_v = edit.method == "set_projection"
    if edit.unit == "max" and along_v:
        amount *= _length(sae, edit.feature)
    elif edit.unit != "max" and not along_v:
        amount /= _length(sae, edit.feature)
    return replace(edit, strength=amount, unit="raw")


def _length(sae: SAE, feature: int) -> float:
    """|d| in the units of the activation."""
    if sae.per_row and sae.recipe.row_norm != "none":
        raise SAEUnsupportedError(
            "the length of this SAE's decoder rows changes with the activation: use raw strengths"
        )
    length = float(sae.decoder_rows(torch.tensor([feature], device=sae.device)).double().norm())
    if length == 0:
        raise SAEUnsupportedError(f"feature {feature} writes nothing: its decoder row is 0", feature=feature)
    return length
