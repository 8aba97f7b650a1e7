"""Encoders of independent features, and the choice of the k largest for competing ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Active(NamedTuple):
    """Entries of activations [n, m] that are not 0."""

    at: Tensor
    """Row · m + feature, ascending."""
    values: Tensor


@dataclass(frozen=True)
class Encoder:
    """Pre-activations and activations of m features (all of an SAE's, or some of them) for z [n, d_in].

    relu        f = max(h, 0)                                  h = z @ W + b
    tanh-relu   f = tanh(max(h, 0))
    jumprelu    f = max(h, 0) · 1[h > threshold]               the value is not shifted
    gated       f = 1[p + b_gate > 0] · max(p · exp(r_mag) + b_mag, 0)     p = z @ W
    """

    kind: str
    W: Tensor
    """[d_in, m]"""
    b: Tensor | None
    """[m]; None for gated."""
    threshold: Tensor | None = None
    b_gate: Tensor | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None

    def select(self, features: Tensor) -> Encoder:
        """The encoder of some features, copied out: [d_in, len(features)]."""
        vectors = {name: getattr(self, name) for name in ("b", "threshold", "b_gate", "b_mag", "r_mag")}
        some = {name: vector[features] for name, vector in vectors.items() if vector is not None}
        return replace(self, W=self.W.index_select(1, features), **some)

    def pre(self, z: Tensor) -> Tensor:
        """h = z @ W + b, [n, d_in] → [n, m]"""
        if self.b is None:
            return product(z, self.W)
        if self._rounds_once:
            return torch.addmm(self.b, z, self.W)
        return product(z, self.W).add_(self.b)  # as `firing` adds it, to the bit

    @cached_property
    def _rounds_once(self) -> bool:
        """In half precision a product is rounded before b is added, unless both are one; a GPU adds b for nothing."""
        return self.W.device.type != "cpu" or self.W.dtype.itemsize < 4

    @cached_property
    def _floor(self) -> Tensor:
        """What h has to exceed to fire, [m]."""
        assert self.b is not None
        return torch.zeros_like(self.b) if self.threshold is None else self.threshold.clamp_min(0)

    @cached_property
    def _certainly_off(self) -> Tensor:
        """z @ W at or below this does not fire, whatever adding b rounds to, [m]."""
        assert self.b is not None
        eps = torch.finfo(self.b.dtype).eps
        return self._floor - self.b - 8 * eps * (self._floor + self.b.abs()) - torch.finfo(self.b.dtype).tiny

    def firing(self, z: Tensor, most: int) -> Tensor | Active:
        """The activations that are not 0, if there are at most `most`; else all, [n, m].

        On a CPU, ReLU and JumpReLU check the product before b is added, and write no zeros. NaN counts as firing.
        """
        if self.b is None or self._rounds_once or self.kind not in ("relu", "jumprelu"):
            f = self(z)
            fires = f != 0
            if int(torch.count_nonzero(fires)) > most:
                return f
            at = fires.view(-1).nonzero().squeeze(1)  # [active]
            return Active(at, f.view(-1)[at])
        p = product(z, self.W)  # [n, m]
        candidates = (p <= self._certainly_off).logical_not_()  # [n, m]
        if int(torch.count_nonzero(candidates)) > most:
            return self._jump(p.add_(self.b))
        at = candidates.view(-1).nonzero().squeeze(1)  # [candidates]
        features = at.remainder(p.shape[1])
        h = p.view(-1)[at] + self.b[features]
        kept = (h <= self._floor[features]).logical_not_()
        return Active(at[kept], h[kept])

    def _jump(self, h: Tensor) -> Tensor:
        """max(h, 0) · 1[h > threshold], in place."""
        return h.relu_() if self.threshold is None else h.masked_fill_(h <= self._floor, 0)

    def __call__(self, z: Tensor) -> Tensor:
        """f, [n, d_in] → [n, m]. NaN in z stays NaN in f."""
        h = self.pre(z)  # [n, m], ours to overwrite
        if self.kind == "gated":
            assert self.b_gate is not None
            assert self.b_mag is not None
            assert self.r_mag is not None
            f = torch.addcmul(self.b_mag, h, self.r_mag.exp()).relu_()  # [n, m]
            return f.masked_fill_(h + self.b_gate <= 0, 0)
        f = self._jump(h)
        return f.tanh_() if self.kind == "tanh-relu" else f


FEW_ROWS = 128
WIDE = 4096
BLOCKS = 8
"""Up to this many rows and columns, one product leaves most of a CPU's threads idle, since it is divided by rows. As a
batch of this many blocks of columns it takes half the time or less (`tests/bench/bench_sae.py`)."""


def product(z: Tensor, W: Tensor) -> Tensor:
    """z @ W for z [n, d_in], W [d_in, m] in either order of its sides, as a contiguous [n, m] of our own."""
    n, m = z.shape[0], W.shape[1]
    if z.device.type != "cpu" or z.dtype != torch.float32 or not 1 < n <= FEW_ROWS or m < WIDE or m % BLOCKS:
        return z @ W
    columns = W.view(W.shape[0], BLOCKS, -1).transpose(0, 1)  # [blocks, d_in, m / blocks], a view
    blocks = torch.bmm(z.expand(BLOCKS, *z.shape), columns)  # [blocks, n, m / blocks]
    return blocks.transpose(0, 1).reshape(n, m)


def k_largest(kind: str, h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which k features of h [n, d_sae] are on, and their activations: indices, values [n, k].

    topk          the k largest h, then max(·, 0): fewer than k may be above 0
    signed-topk   the k largest h, as they are: some may be below 0
    abstopk       the k largest |h|, with their sign
    groupmax      feature j of k groups of d_sae / k neighbours: the largest of each, then max(·, 0)
    """
    if kind == "abstopk":
        features = h.abs().topk(k, dim=-1, sorted=False).indices
        return features, h.gather(-1, features)
    if kind == "groupmax":
        values, within = h.view(*h.shape[:-1], k, -1).max(dim=-1)  # [n, k]
        first = torch.arange(k, device=h.device) * (h.shape[-1] // k)  # [k]
        return within + first, values.relu_()
    values, features = h.topk(k, dim=-1, sorted=False)
    return features, values if kind == "signed-topk" else values.relu_()
