"""An SAE's encoder columns and decoder rows compared: their norms, and how alike any two are."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ...ports import ComparedRows
from ...sae import SAE

BLOCK = 2048
"""Rows that are compared with as many others in a piece; they alone are copied, in float32."""


def compare(sae: SAE) -> Generator[None, None, ComparedRows]:
    """A block of rows a piece."""
    encoder, decoder = sae.W_enc.T, sae.W_dec  # [d_sae, d_in], [d_sae, d_out]
    bias = next((sae.weights[name] for name in ("b_mag", "b_enc") if name in sae.weights), None)
    norms: list[float] = []
    between: list[float] = []
    for columns, rows in zip(torch.split(encoder, BLOCK), torch.split(decoder, BLOCK), strict=True):
        norms += columns.float().norm(dim=-1).tolist()
        if columns.shape == rows.shape:
            between += cosine_similarity(columns.float(), rows.float()).tolist()
        yield
    nearest_encoder = yield from _nearest(encoder)
    nearest_decoder = yield from _nearest(decoder)
    return ComparedRows(
        encoder_bias=(0.0,) * len(decoder) if bias is None else tuple(bias.float().tolist()),
        encoder_norm=tuple(norms),
        encoder_decoder_cosine=tuple(between) or None,
        nearest_encoder_cosine=nearest_encoder,
        nearest_decoder_cosine=nearest_decoder,
    )


def _nearest(rows: Tensor) -> Generator[None, None, tuple[float, ...]]:
    """For each row the largest cosine with any other one; with a single row −1."""
    found: list[float] = []
    for first in range(0, len(rows), BLOCK):
        some = normalize(rows[first : first + BLOCK].float(), dim=-1)  # [m, width]
        best = some.new_full((len(some),), -1.0)
        for start in range(0, len(rows), BLOCK):
            others = normalize(rows[start : start + BLOCK].float(), dim=-1)
            cosines = some @ others.T  # [m, n]
            if start == first:
                cosines.fill_diagonal_(-1.0)
            best = torch.maximum(best, cosines.amax(-1))
            del others, cosines
            yield
        found += best.tolist()
    return tuple(found)
