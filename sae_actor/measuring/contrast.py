"""Two lists of texts, pooled feature by feature → the features that tell them apart.

What decides an order is computed in whole numbers or in float64, so it does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import ContrastedFeature, HeldOut, held_out_of

MOST_VALUES = 2**22
"""In memory at a time, beside the texts themselves."""


@dataclass(frozen=True, eq=False)
class PooledTexts:
    """Texts as `[texts, features]` float32."""

    values: Tensor

    @classmethod
    def of(cls, rows: Sequence[bytes]) -> PooledTexts:
        """From the plain float32 array of each text."""
        return cls(torch.stack([torch.frombuffer(bytearray(row), dtype=torch.float32) for row in rows]))

    def __len__(self) -> int:
        return len(self.values)

    def split(self, share: float) -> tuple[PooledTexts, PooledTexts]:
        """All but the last texts, and the last, `held_out_of` them."""
        last = held_out_of(len(self), share)
        return PooledTexts(self.values[:-last]), PooledTexts(self.values[-last:])


def active_counts(rows: Sequence[bytes]) -> Tensor:
    """int64 [features]: the sum of plain int32 arrays, one of each text."""
    total = torch.zeros(len(rows[0]) // 4, dtype=torch.int64)
    for row in rows:
        total += torch.frombuffer(bytearray(row), dtype=torch.int32)
    return total


def contrast(
    positive: PooledTexts,
    negative: PooledTexts,
    *,
    active: Tensor,
    tokens: int,
    top: int | None = None,
    held_out: float = 0.0,
) -> list[ContrastedFeature]:
    """The features by |auroc − ½|, then by |difference|, then by number; `top`: only so many, None: all.

    `active`: at how many of the `tokens` counted tokens each feature is above 0 (`active_counts`). held_out: that share
    of each list, its last texts, has no part in the order and the threshold, and is measured by itself.
    """
    a, b = positive, negative
    rest: tuple[PooledTexts, PooledTexts] | None = None
    if held_out > 0:
        (a, rest_a), (b, rest_b) = a.split(held_out), b.split(held_out)
        rest = rest_a, rest_b
    twice = _twice_u(a.values, b.values)
    found = _Means.of(a.values, b.values)
    pairs = len(a) * len(b)
    order = found.difference.abs().sort(descending=True, stable=True).indices
    order = order[(twice[order] - pairs).abs().sort(descending=True, stable=True).indices]
    chosen = order if top is None else order[:top]
    thresholds = _thresholds(a.values, b.values, chosen)
    apart: Iterator[HeldOut | None] = iter([None] * len(chosen))
    if rest is not None:
        apart = _held_out(rest[0].values[:, chosen], rest[1].values[:, chosen], thresholds)
    columns = [
        *found.of_features(chosen),
        twice[chosen].double() / (2 * pairs),
        thresholds,
        active[chosen] / max(tokens, 1),
    ]
    numbers = zip(chosen.tolist(), *(column.tolist() for column in columns), apart, strict=True)
    return [
        ContrastedFeature(
            feature=feature,
            mean_a=mean_a,
            mean_b=mean_b,
            difference=difference,
            frac_active_a=frac_a,
            frac_active_b=frac_b,
            auroc=auroc,
            threshold=threshold,
            density=density,
            held_out=beside,
        )
        for feature, mean_a, mean_b, difference, frac_a, frac_b, auroc, threshold, density, beside in numbers
    ]


@dataclass(frozen=True, eq=False)
class _Means:
    """[features] each, float64."""

    mean_a: Tensor
    mean_b: Tensor
    difference: Tensor
    frac_a: Tensor
    frac_b: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> _Means:
        means = [each.sum(dim=0, dtype=torch.float64) / len(each) for each in (a, b)]
        shares = [(each > 0).sum(dim=0).double() / len(each) for each in (a, b)]
        return cls(means[0], means[1], means[0] - means[1], shares[0], shares[1])

    def of_features(self, chosen: Tensor) -> list[Tensor]:
        return [each[chosen] for each in (self.mean_a, self.mean_b, self.difference, self.frac_a, self.frac_b)]


def _twice_u(a: Tensor, b: Tensor) -> Tensor:
    """Over all pairs of texts 2 where a > b and 1 where a = b, summed: int64 [features]."""
    found = []
    for one, other in _in_parts(a, b):
        negative = other.sort(dim=1).values
        found.append(_below(negative, one).sum(dim=1) + _upto(negative, one).sum(dim=1))
    return torch.cat(found)


def _thresholds(a: Tensor, b: Tensor, chosen: Tensor) -> Tensor:
    """Of the chosen features: float64."""
    found = []
    for one, other in _in_parts(a[:, chosen], b[:, chosen]):
        scores = torch.cat([one, other], dim=1).sort(dim=1, descending=True).values
        above = [side.shape[1] - _below(side.sort(dim=1).values, scores) for side in (one, other)]
        best = (above[0] * other.shape[1] - above[1] * one.shape[1]).argmax(dim=1, keepdim=True)  # the first of several
        found.append(scores.gather(1, best)[:, 0])
    return torch.cat(found).double() if found else torch.empty(0, dtype=torch.float64)


def _held_out(a: Tensor, b: Tensor, thresholds: Tensor) -> Iterator[HeldOut]:
    means = _Means.of(a, b)
    auroc = _twice_u(a, b).double() / (2 * len(a) * len(b)) if a.shape[1] else thresholds
    rates = [(each.double() >= thresholds).sum(dim=0).double() / len(each) for each in (a, b)]
    columns = [means.mean_a, means.mean_b, means.difference, means.frac_a, means.frac_b, auroc, *rates]
    for mean_a, mean_b, difference, frac_a, frac_b, area, true, false in zip(
        *(c.tolist() for c in columns), strict=True
    ):
        yield HeldOut(
            mean_a=mean_a,
            mean_b=mean_b,
            difference=difference,
            frac_active_a=frac_a,
            frac_active_b=frac_b,
            auroc=area,
            true_positive_rate=true,
            false_positive_rate=false,
        )


def _in_parts(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some features at a time, each with its texts in a row: [features, texts]."""
    some = max(1, MOST_VALUES // (len(a) + len(b)))
    for one, other in zip(torch.split(a, some, dim=1), torch.split(b, some, dim=1), strict=True):
        yield one.t().contiguous(), other.t().contiguous()


def _below(ordered: Tensor, values: Tensor) -> Tensor:
    """In each row: how many of `ordered`, ascending, are below each of `values`."""
    return torch.searchsorted(ordered, values.contiguous(), right=False)


def _upto(ordered: Tensor, values: Tensor) -> Tensor:
    return torch.searchsorted(ordered, values.contiguous(), right=True)
