"""The differences of `project` and `set_projection`: all edits that hold at a row act jointly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-10
"""Directions whose Gram matrix has a relative eigenvalue below this count as dependent."""
DEFINITE = 1e-8
"""Above it a Gram matrix is factored as it is, and so is that of every subset: its eigenvalues lie in between."""
MOST_VALUES = 2**21
"""Most numbers of Gram matrices in memory at a time."""


class _Basis(NamedTuple):
    """The p directions as g: those that are equal or opposite, at rows where several hold, are one."""

    V: Tensor
    """[g, d]"""
    part: Tensor
    """[p, g]: 1 or −1 where a direction is that one, else 0."""
    gram: Tensor
    """[g, g]"""
    definite: bool
    """The g directions are independent, and so are any of them."""


class Projections:
    """Directions in the space of the activation, and what is wanted along them.

    With V [p, d] the unit directions that hold at a row and t their targets (s · x·v for `project`, s for
    `set_projection`), the smallest Δ that minimises ‖V (x + Δ) − t‖: Δ = V⁺ (t − V x) = Vᵀ (V Vᵀ)⁺ (t − V x).
    """

    def __init__(self, rows: Tensor, goal: Tensor, relative: Tensor) -> None:
        """rows [p, d]: decoder rows, of any length; goal [p]: the strengths; relative bool [p]: `project`."""
        long = rows.double()
        self.V: Tensor = long / long.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)  # [p, d]
        self._v: Tensor = self.V.to(rows.dtype)  # [p, d]
        self._goal = goal
        self._relative = relative

    @classmethod
    def joined(cls, several: Sequence[Projections]) -> Projections:
        """Those of several SAEs at one hook point, in order, in the widest of their types."""
        whole = cls.__new__(cls)
        whole.V = torch.cat([each.V for each in several])
        whole._goal = torch.cat([each._goal for each in several])  # promotes
        whole._v = whole.V.to(whole._goal.dtype)
        whole._relative = torch.cat([each._relative for each in several])
        return whole

    def __len__(self) -> int:
        return len(self.V)

    @property
    def dtype(self) -> torch.dtype:
        """In which x is looked at, and the difference given."""
        return self._v.dtype

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self._v).all())

    @property
    def nbytes(self) -> int:
        """Bytes held, once it was used."""
        p, d = self.V.shape
        return int(self.V.nbytes + self._v.nbytes) + 8 * (2 * p * p + p * d)

    def difference(self, x: Tensor, held: Tensor) -> Tensor:
        """What is added to x [n, d] at rows where held [p, n] is, [n, d] in `dtype`."""
        along = x.to(self.dtype) @ self._v.T  # [n, p]
        missing: Tensor = torch.where(self._relative, (self._goal - 1) * along, self._goal - along)  # t − V x, [n, p]
        missing = missing.masked_fill(~held.T, 0)
        if len(self) == 1:
            return missing * self._v  # [n, 1] · [1, d]
        basis = self._basis
        # Of several that want something else along one direction, the least squares are at the mean.
        holding = held.T.double() @ basis.part.abs()  # [n, g]
        wanted = missing.double() @ basis.part
        if basis.definite:
            wanted = wanted / holding.clamp_min(1)
        return (_solved(basis, holding > 0, wanted) @ basis.V).to(self.dtype)

    @cached_property
    def _basis(self) -> _Basis:
        gram = self.V @ self.V.T  # [p, p]
        each = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
        if not bool(torch.isfinite(gram).all()):
            # Damaged rows give values that are not finite, reported as the SAE's fault; `eigh` would raise for all.
            return _Basis(self.V, each, gram, definite=True)
        there = gram.diagonal() > 0.5  # a row of zeros is not a direction
        same = (gram.abs() >= 1 - RANK_TOLERANCE) & there
        first = same.int().argmax(dim=1)[there]  # [of those that are there], the first that is equal or opposite
        chosen, which = torch.unique(first, return_inverse=True)  # [g]
        part = torch.zeros(len(gram), len(chosen), dtype=torch.float64, device=gram.device)
        mine = there.nonzero().squeeze(1)
        part[mine, which] = gram[mine, first].sign()
        merged = _Basis(self.V[chosen], part, gram[chosen][:, chosen], definite=True)
        if _definite(merged.gram):
            return merged
        # Then it matters how many want something along each.
        return _Basis(self.V, each, gram, definite=False)


def _definite(gram: Tensor) -> bool:
    if not len(gram):
        return True
    values = torch.linalg.eigvalsh(gram)  # ascending
    return bool(values[0] > DEFINITE * values[-1])


def _solved(basis: _Basis, on: Tensor, wanted: Tensor) -> Tensor:
    """Coefficients [n, g] of the directions: of each row's Gram matrix, that of the directions that are `on` (bool
    [n, g]), the (pseudo-)inverse times `wanted` [n, g]. Rows with the same directions are solved at once, and as many
    sets of directions as there is room for."""
    result = torch.zeros_like(wanted)
    subsets, which = torch.unique(on, dim=0, return_inverse=True)  # [u, g], [n]
    order = subsets.sum(dim=1).argsort()  # few directions first
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    rows = place[which].argsort(stable=True)  # [n], by their set
    subsets = subsets[order]
    counts = torch.bincount(place[which], minlength=len(subsets))  # [u]: rows of each
    sizes, widths = counts.tolist(), subsets.sum(dim=1).tolist()
    at = row = 0
    while at < len(sizes):
        stop, tallest = at, 0
        while stop < len(sizes):
            tallest = max(tallest, sizes[stop])
            if stop > at and (stop + 1 - at) * widths[stop] * max(widths[stop], tallest) > MOST_VALUES:
                break
            stop += 1
        number = sum(sizes[at:stop])
        if widths[stop - 1]:
            mine = rows[row : row + number]
            result[mine] = _some(basis, subsets[at:stop, :], widths[stop - 1], counts[at:stop], wanted[mine])
        at, row = stop, row + number
    return result


def _some(basis: _Basis, subsets: Tensor, width: int, counts: Tensor, wanted: Tensor) -> Tensor:
    """Coefficients [m, g] for wanted [m, g], whose rows are in the order of subsets [c, g], counts [c] of each;
    `width` is the largest set."""
    index = subsets.int().argsort(dim=1, descending=True, stable=True)[:, :width]  # [c, width]: those that are on
    on = subsets.gather(1, index)
    both = on[:, :, None] & on[:, None, :]
    gram = basis.gram[index[:, :, None], index[:, None, :]] * both  # [c, width, width]
    m, tallest = len(wanted), int(counts.max())
    of = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=m)  # [m]
    within = torch.arange(m, device=of.device) - (counts.cumsum(0) - counts)[of]  # [m]
    right = wanted.new_zeros(len(counts), tallest, width)
    right[of, within] = wanted.gather(1, index[of]) * on[of]
    right = right.transpose(1, 2)  # [c, width, tallest]
    if basis.definite:
        lower, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed((~on).double()))
        found = torch.cholesky_solve(right, lower)
    else:
        values, Q = torch.linalg.eigh(gram)  # [c, width], [c, width, width]
        kept = values > RANK_TOLERANCE * values[:, -1:]
        found = Q @ (torch.where(kept, 1 / values, 0)[:, :, None] * (Q.transpose(1, 2) @ right))
    return torch.zeros_like(wanted).scatter_(1, index[of], found.transpose(1, 2)[of, within] * on[of])
