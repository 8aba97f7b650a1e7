"""An SAE's encoder columns and decoder rows compared: their norms, and how alike any two are."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ...ports import ComparedRows
from ...sae import SAE

AT_ONCE = 2**24
"""Cosines that are in memory at a time."""


def compare(sae: SAE) -> Generator[None, None, ComparedRows]:
    """Some rows a piece."""
    encoder, decoder = sae.W_enc.T, sae.W_dec  # [d_sae, d_in], [d_sae, d_out]
    bias = next((sae.weights[name] for name in ("b_mag", "b_enc") if name in sae.weights), None)
    between = None
    if encoder.shape == decoder.shape:
        between = tuple(cosine_similarity(encoder.float(), decoder.float()).tolist())
    yield
    nearest_encoder = yield from _nearest(encoder)
    nearest_decoder = yield from _nearest(decoder)
    return ComparedRows(
        encoder_bias=(0.0,) * len(decoder) if bias is None else tuple(bias.float().tolist()),
        encoder_norm=tuple(encoder.float().norm(dim=-1).tolist()),
        encoder_decoder_cosine=between,
        nearest_encoder_cosine=nearest_encoder,
        nearest_decoder_cosine=nearest_decoder,
    )


def _nearest(rows: Tensor) -> Generator[None, None, tuple[float, ...]]:
    """For each row the largest cosine with any other one; with a single row −1."""
    unit = normalize(rows.float(), dim=-1)  # [n, width]
    found: list[float] = []
    few = max(1, AT_ONCE // max(1, len(unit)))
    for first in range(0, len(unit), few):
        cosines = unit[first : first + few] @ unit.T  # [few, n]
        own = torch.arange(len(cosines), device=unit.device)
        cosines[own, own + first] = -1.0
        found += cosines.amax(-1).tolist()
        del cosines
        yield
    return tuple(found)
