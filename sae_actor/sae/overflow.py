"""Strengths that a floating-point type cannot hold, found before any computation with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..domain.refs import Edit
from ..errors import SAEUnsupportedError
from .autoencoder import SAE


def refuse_overflow(sae: SAE, edits: Sequence[Edit], written_in: torch.dtype | None = None) -> None:
    """`SAEUnsupportedError` with `feature`, `strength` and `limit` (the largest strength there can be) for an edit
    whose strength, or what it writes, is beyond the SAE's type or `written_in`, the model's.

    Only the effect of the strength itself is checked. What depends on an activation, on the row's own scale or on the
    sum of several edits shows only when it is computed."""
    if not edits:
        return
    types = [sae.dtype, *([] if written_in is None else [written_in])]
    narrowest = min(types, key=lambda each: torch.finfo(each).max)
    largest, held = torch.finfo(narrowest).max, torch.finfo(sae.dtype).max
    features = torch.tensor([edit.feature for edit in edits], dtype=torch.long, device=sae.device)
    rows = sae.decoder_rows(features).double()  # [n, d_out]
    peaks = rows.abs().amax(dim=1)  # [n]
    lengths = rows.norm(dim=1)  # [n]
    for edit, peak, length in zip(edits, peaks.tolist(), lengths.tolist(), strict=True):
        limit = _limit(edit, peak, length, largest, held)
        if abs(edit.strength) > limit:
            name = str(narrowest).removeprefix("torch.")
            raise SAEUnsupportedError(
                f"feature {edit.feature}: a strength of {edit.strength:g} goes beyond {name}, "
                f"which holds up to {limit:g} here",
                feature=edit.feature, strength=edit.strength, limit=limit, param="strength",
            )  # fmt: skip


def _limit(edit: Edit, peak: float, length: float, largest: float, held: float) -> float:
    """The largest |strength| of the edit: `held` is what the SAE's type holds, `largest` what both types do; `peak`
    and `length` are of the feature's decoder row."""
    if edit.method in ("scale", "project"):
        return held
    if edit.method == "cap" and edit.strength >= 0:
        return float("inf")  # above every activation it does nothing, and at least it writes the activation's own
    if edit.method == "set_projection":
        peak = peak / length if length else 0.0
    # Damaged rows are not the strength's fault.
    return min(held, largest / peak) if 0 < peak < float("inf") else held
