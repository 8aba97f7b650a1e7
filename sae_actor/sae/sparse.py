"""Sums of the decoder rows that are active, instead of a product with a matrix of zeros."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

DENSE_ABOVE = 1 / 16
"""Share of active entries from which the matrix product is the faster one on a CPU; see `tests/bench/bench_sae.py`."""


def weighted_rows(acts: Tensor, W_dec: Tensor) -> Tensor:
    """`acts @ W_dec` for acts [n, d_sae] that are mostly zero → [n, d_out].

    A CPU gathers rows when few are active. A GPU multiplies: counting what is active would make it wait.
    """
    if acts.device.type != "cpu" or acts.numel() == 0:
        return acts @ W_dec
    active = int(torch.count_nonzero(acts))
    if active > acts.numel() * DENSE_ABOVE:
        return acts @ W_dec
    rows, features = acts.nonzero(as_tuple=True)  # [active], rows ascending
    ends = torch.bincount(rows, minlength=acts.shape[0]).cumsum(0)
    offsets = torch.cat((ends.new_zeros(1), ends[:-1]))  # [n]
    return bag(features, acts[rows, features], W_dec, offsets)


def chosen_rows(features: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """Σ_j values[t, j] · W_dec[features[t, j]] for features, values [n, k] → [n, d_out]."""
    n, k = features.shape
    if n == 0 or k > W_dec.shape[0] * DENSE_ABOVE:
        dense = values.new_zeros(n, W_dec.shape[0]).scatter_(1, features, values)
        return dense @ W_dec
    return bag(features, values, W_dec, None)


def bag(features: Tensor, values: Tensor, W_dec: Tensor, offsets: Tensor | None) -> Tensor:
    return embedding_bag(features, W_dec, offsets, mode="sum", per_sample_weights=values)
