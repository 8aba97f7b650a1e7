"""Encoders whose features do not look at each other, and the choice of the k largest where they do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


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

        def some(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else vector[features]

        return replace(
            self,
            W=self.W.index_select(1, features),
            b=some(self.b),
            threshold=some(self.threshold),
            b_gate=some(self.b_gate),
            b_mag=some(self.b_mag),
            r_mag=some(self.r_mag),
        )

    def pre(self, z: Tensor) -> Tensor:
        """h = z @ W + b, [n, d_in] → [n, m]"""
        return z @ self.W if self.b is None else torch.addmm(self.b, z, self.W)

    def firing(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Which features fire, without writing the zeros: values [n, m], right where bool [n, m] is true.

        NaN counts as firing, so that it reaches the output.
        """
        if self.kind not in ("relu", "jumprelu"):
            f = self(z)
            return f, f != 0
        h = self.pre(z)  # [n, m]
        floor = 0 if self.threshold is None else self.threshold.clamp_min(0)
        return h, (h <= floor).logical_not_()

    def __call__(self, z: Tensor) -> Tensor:
        """f, [n, d_in] → [n, m]. NaN in z stays NaN in f."""
        h = self.pre(z)  # [n, m], ours to overwrite
        if self.kind == "gated":
            assert self.b_gate is not None
            assert self.b_mag is not None
            assert self.r_mag is not None
            f = torch.addcmul(self.b_mag, h, self.r_mag.exp()).relu_()  # [n, m]
            return f.masked_fill_(h + self.b_gate <= 0, 0)
        if self.kind == "jumprelu":
            assert self.threshold is not None
            return h.masked_fill_(h <= self.threshold.clamp_min(0), 0)  # h > max(threshold, 0), else 0
        f = h.relu_()
        return f.tanh_() if self.kind == "tanh-relu" else f


def k_largest(kind: str, h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which k features of h [n, d_sae] are on, and their activations: indices, values [n, k].

    topk      the k largest h, then max(·, 0): fewer than k may be above 0
    abstopk   the k largest |h|, with their sign
    groupmax  feature j of k groups of d_sae / k neighbours: the largest of each, then max(·, 0)
    """
    if kind == "abstopk":
        features = h.abs().topk(k, dim=-1, sorted=False).indices
        return features, h.gather(-1, features)
    if kind == "groupmax":
        values, within = h.view(*h.shape[:-1], k, -1).max(dim=-1)  # [n, k]
        first = torch.arange(k, device=h.device) * (h.shape[-1] // k)  # [k]
        return within + first, values.relu_()
    values, features = h.topk(k, dim=-1, sorted=False)
    return features, values.relu_()
