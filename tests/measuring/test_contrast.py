"""Contrast next to the definitions, pair by pair and score by score."""

from __future__ import annotations

import itertools
import math
from array import array
from statistics import fmean

import pytest
import torch

from sae_actor.measuring import contrast as module
from sae_actor.measuring.contrast import PooledTexts, active_counts, contrast
from sae_actor.measuring.rows import ContrastedFeature, held_out_of


def auroc(a: list[float], b: list[float]) -> float:
    return fmean(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(a, b))


def rate(scores: list[float], threshold: float) -> float:
    return fmean(each >= threshold for each in scores)


def youden(a: list[float], b: list[float]) -> float:
    """The largest of the scores at which TPR − FPR is greatest."""
    return max({*a, *b}, key=lambda score: (round(rate(a, score) - rate(b, score), 9), score))


def by_hand(a: torch.Tensor, b: torch.Tensor, active: list[int], tokens: int) -> list[ContrastedFeature]:
    rows = []
    for feature in range(a.shape[1]):
        one, other = a[:, feature].tolist(), b[:, feature].tolist()
        rows.append(
            ContrastedFeature(
                feature=feature,
                mean_a=fmean(one),
                mean_b=fmean(other),
                difference=fmean(one) - fmean(other),
                frac_active_a=fmean(each > 0 for each in one),
                frac_active_b=fmean(each > 0 for each in other),
                auroc=auroc(one, other),
                threshold=youden(one, other),
                density=active[feature] / tokens,
            )
        )
    return sorted(rows, key=lambda row: (-round(abs(row.auroc - 0.5), 9), -abs(row.difference), row.feature))


def close(found: ContrastedFeature, want: ContrastedFeature) -> None:
    for name in set(want.__struct_fields__) - {"label", "held_out"}:
        assert getattr(found, name) == pytest.approx(getattr(want, name), rel=1e-6, abs=1e-9), (name, want)


@pytest.fixture(params=[2**22, 50])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", request.param)


@pytest.mark.usefixtures("parts")
def test_equals_the_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    # Whole numbers and many zeros, so that there are ties; of both signs.
    a = torch.randint(-2, 5, (7, 40), generator=generator).clamp_min(-1).float() * 0.25
    b = torch.randint(-3, 4, (5, 40), generator=generator).clamp_min(-1).float() * 0.25
    a[:, 3], b[:, 3] = torch.arange(7.0) + 10, torch.arange(5.0)
    a[:, 4] = b[:, 4] = 0
    active = torch.arange(40)
    found = contrast(PooledTexts(a), PooledTexts(b), active=active, tokens=80)
    want = by_hand(a, b, active.tolist(), 80)
    for one, other in zip(found, want, strict=True):
        close(one, other)
    assert (found[0].feature, found[0].auroc, found[0].threshold) == (3, 1.0, 10.0)
    nothing = next(row for row in found if row.feature == 4)
    assert (nothing.auroc, nothing.difference, nothing.threshold, nothing.held_out) == (0.5, 0.0, 0.0, None)
    assert contrast(PooledTexts(a), PooledTexts(b), active=active, tokens=80, top=6) == found[:6]


def test_equals_an_example_of_scikit_learn() -> None:
    """scores 0.1 0.4 0.35 0.8 of labels 0 0 1 1: sklearn's own example, whose area is 0.75."""
    a, b = torch.tensor([[0.35], [0.8]]), torch.tensor([[0.1], [0.4]])
    (row,) = contrast(PooledTexts(a), PooledTexts(b), active=torch.tensor([3]), tokens=4)
    assert row.auroc == 0.75
    assert row.threshold == pytest.approx(0.8)  # roc_curve: (0, .5), (.5, .5), (.5, 1): J is .5 at .8 and at .35
    assert (row.density, row.frac_active_b) == (0.75, 1.0)
    assert row.mean_a == pytest.approx(0.575)


@pytest.mark.usefixtures("parts")
def test_the_order_is_of_what_is_not_held_out() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(8, 30, generator=generator), torch.rand(6, 30, generator=generator)
    found = contrast(PooledTexts(a), PooledTexts(b), active=torch.zeros(30), tokens=9, top=5, held_out=0.5)
    want = by_hand(a[:4], b[:3], [0] * 30, 9)[:5]
    for one, other in zip(found, want, strict=True):
        rest = one.held_out
        assert rest is not None
        close(one, other)
        last_a, last_b = a[4:, one.feature].tolist(), b[3:, one.feature].tolist()
        assert rest.auroc == pytest.approx(auroc(last_a, last_b))
        assert rest.difference == pytest.approx(fmean(last_a) - fmean(last_b), rel=1e-6)
        assert rest.true_positive_rate == pytest.approx(rate(last_a, one.threshold))
        assert rest.false_positive_rate == pytest.approx(rate(last_b, one.threshold))
        assert rest.mean_a == pytest.approx(fmean(last_a), rel=1e-6)
        assert rest.frac_active_b == 1.0


def test_a_held_out_part_leaves_both_parts_a_text() -> None:
    assert [held_out_of(*each) for each in ((1, 0.5), (2, 0.01), (2, 0.5), (3, 0.9))] == [1, 1, 1, 3]
    assert [len(each) for each in PooledTexts(torch.zeros(10, 1)).split(0.25)] == [8, 2]


def test_from_plain_arrays() -> None:
    texts = PooledTexts.of([array("f", [1.5, -2.0]).tobytes(), array("f", [0.0, 3.0]).tobytes()])
    assert texts.values.tolist() == [[1.5, -2.0], [0.0, 3.0]]
    assert active_counts([array("i", [1, 2]).tobytes(), array("i", [3, 0]).tobytes()]).tolist() == [4, 2]


def test_of_many_features() -> None:
    """256 texts of an SAE of 65,536 features: a second or two, and little memory beside the texts."""
    generator = torch.Generator().manual_seed(2)
    texts = torch.rand(256, 65_536, generator=generator)
    texts[:128, 777] += 2
    found = contrast(PooledTexts(texts[:128]), PooledTexts(texts[128:]), active=torch.zeros(65_536), tokens=1, top=3)
    assert (found[0].feature, found[0].auroc) == (777, 1.0)
    assert math.isfinite(found[2].threshold)
