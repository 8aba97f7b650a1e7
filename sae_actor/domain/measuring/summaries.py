"""Sums over groups of texts → the numbers of an evaluation.

`sums`, over all groups: `texts`, `tokens`, `excluded`, `positions` (with a next token); `ce_clean`, `ce_sae`,
`ce_ablation`, `kl_sae`, `kl_ablation` over these positions, in nats. Over the tokens that count: `l0`, `l1`, `norms`
Σ‖x‖, `new_norms` Σ‖x̂‖, `squares` Σ‖x‖², `new_squares` Σ‖x̂‖², `inner` Σ x·x̂, `errors` Σ‖x − x̂‖², `cossim`, `l2_ratio`,
and `explained_legacy` Σ (1 − ‖x − x̂‖² / ‖x − μ‖²) with the mean μ of the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

BINS = tuple(n / 4 for n in range(-32, 1))
"""Edges of the density histogram: log10, from −8 to 0."""


def evaluation(sums: Mapping[str, float], mean_sums: Sequence[float], firing: Sequence[int]) -> dict[str, Any]:
    """The summary of a run of kind `evaluate`; null where nothing was counted."""
    n = sums.get("tokens", 0.0) - sums.get("excluded", 0.0)
    positions = sums.get("positions", 0.0)
    clean, new, without = (_ratio(sums.get(f"ce_{each}"), positions) for each in ("clean", "sae", "ablation"))
    kl, kl_without = (_ratio(sums.get(f"kl_{each}"), positions) for each in ("sae", "ablation"))
    total = math.fsum(value * value for value in mean_sums)
    variance = sums.get("squares", 0.0) - total / n if n else 0.0
    fvu = _ratio(sums.get("errors"), variance)
    densities = [count / n if n else 0.0 for count in firing]
    return {
        "ce_loss_without_sae": clean,
        "ce_loss_with_sae": new,
        "ce_loss_with_ablation": without,
        "ce_loss_score": None if clean is None else _ratio(_less(without, new), _less(without, clean) or 0.0),
        "kl_div_with_sae": kl,
        "kl_div_with_ablation": kl_without,
        "kl_div_score": _ratio(_less(kl_without, kl), kl_without or 0.0),
        "explained_variance": None if fvu is None else 1 - fvu,
        "explained_variance_legacy": _ratio(sums.get("explained_legacy"), n),
        "fvu": fvu,
        "mse": _ratio(sums.get("errors"), n),
        "cossim": _ratio(sums.get("cossim"), n),
        "l2_norm_in": _ratio(sums.get("norms"), n),
        "l2_norm_out": _ratio(sums.get("new_norms"), n),
        "l2_ratio": _ratio(sums.get("l2_ratio"), n),
        "relative_reconstruction_bias": _ratio(sums.get("new_squares"), sums.get("inner", 0.0)),
        "l0": _ratio(sums.get("l0"), n),
        "l1": _ratio(sums.get("l1"), n),
        "frac_alive": _ratio(float(sum(count > 0 for count in firing)), float(len(firing))),
        "freq_over_1_percent": _ratio(float(sum(each > 0.01 for each in densities)), float(len(densities))),
        "freq_over_10_percent": _ratio(float(sum(each > 0.1 for each in densities)), float(len(densities))),
        "normalized_freq_over_1_percent": _share(densities, 0.01),
        "normalized_freq_over_10_percent": _share(densities, 0.1),
        "density_histogram": histogram(densities),
        "contexts": int(sums.get("texts", 0)),
        "tokens": int(sums.get("tokens", 0)),
        "excluded": int(sums.get("excluded", 0)),
        "positions": int(positions),
    }


def histogram(densities: Sequence[float]) -> dict[str, Any]:
    """How many features have which density: bins of log10, the first open below; and those that never fire."""
    counts = [0] * (len(BINS) - 1)
    for each in densities:
        if each > 0:
            at = math.floor((math.log10(each) - BINS[0]) * 4)
            counts[min(max(at, 0), len(counts) - 1)] += 1
    return {"log10_edges": list(BINS), "counts": counts, "never": sum(each == 0 for each in densities)}


def _share(densities: Sequence[float], above: float) -> float | None:
    return _ratio(math.fsum(each for each in densities if each > above), math.fsum(densities))


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else part / whole
