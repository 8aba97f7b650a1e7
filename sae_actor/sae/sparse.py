"""Sums of the decoder rows that are active, instead of a product with a matrix of zeros."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

ONE_ROW = 0.4
"""Share of the decoder's rows that may be gathered before reading all of them once is the faster way."""
PER_ROW = 1 / 40
"""The same per row of activations, for many rows, where the product is bound by arithmetic; both by
`tests/bench/bench_sae.py` on a CPU."""


def few(n: int, d_sae: int) -> int:
    """How many entries of [n, d_sae] may be active for gathering their decoder rows one by one to win."""
    return int(d_sae * max(ONE_ROW, n * PER_ROW))


def weighted_rows(acts: Tensor, W_dec: Tensor, gain: Tensor | None = None) -> Tensor:
    """`(acts · gain) @ W_dec` for acts [n, d_sae] that are mostly zero → [n, d_out].

    A CPU gathers rows when few are active. A GPU multiplies: counting what is active would make it wait.
    """
    n, d_sae = acts.shape
    if acts.device.type == "cpu":
        fires = acts != 0  # NaN fires too
        if int(torch.count_nonzero(fires)) <= few(n, d_sae):
            at = fires.reshape(-1).nonzero().squeeze(1)  # [active]
            return active_rows(at, acts.reshape(-1)[at], n, W_dec, gain)
    return (acts if gain is None else acts * gain) @ W_dec


def active_rows(at: Tensor, values: Tensor, n: int, W_dec: Tensor, gain: Tensor | None = None) -> Tensor:
    """The same for the entries `at` (row · d_sae + feature, ascending) with `values`, both [active] → [n, d_out]."""
    d_sae = W_dec.shape[0]
    starts = torch.searchsorted(at, torch.arange(n) * d_sae)  # [n]
    features = at.remainder(d_sae)
    if gain is not None:
        values = values * gain[features]
    return embedding_bag(features, W_dec, starts, mode="sum", per_sample_weights=values)


def chosen_rows(features: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """Σ_j values[t, j] · W_dec[features[t, j]] for features, values [n, k] → [n, d_out]."""
    n, k = features.shape
    if n * k <= few(n, W_dec.shape[0]):
        return embedding_bag(features, W_dec, mode="sum", per_sample_weights=values)
    dense = values.new_zeros(n, W_dec.shape[0]).scatter_(1, features, values)
    return dense @ W_dec
