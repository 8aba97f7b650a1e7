"""What the fake engine measures: sums that depend on the token ids alone, and add up as real ones do."""

from __future__ import annotations

import array
from collections.abc import Iterator

from sae_actor.ports import EvaluatedGroup, ReadGroup, TextGroup


def counted(group: TextGroup) -> Iterator[tuple[int, int]]:
    """Number and token of each position that counts; the first one of a text is a sink."""
    at = 0
    for text in group.texts:
        for number, token in enumerate(text):
            if number or "sink" not in group.exclude:
                yield at + number, token
        at += len(text)


def evaluated(group: TextGroup, d_sae: int, width: int) -> EvaluatedGroup:
    """Every token is a vector of its own length; the feature of its number is on, as strong as it."""
    tokens = [token for _, token in counted(group)]
    positions = sum(len(text) - 1 for text in group.texts)
    strong = sum(1.0 + token % 7 for token in tokens)
    squares = float(sum((1 + token % 7) ** 2 * width for token in tokens))
    firing = [0] * d_sae
    for token in tokens:
        firing[token % d_sae] += 1
    sums = {
        "tokens": float(sum(map(len, group.texts))),
        "excluded": float(sum(map(len, group.texts)) - len(tokens)),
        "positions": float(positions),
        "ce_clean": 2.0 * positions,
        "ce_sae": 2.5 * positions,
        "ce_ablation": 6.0 * positions,
        "kl_sae": 0.5 * positions,
        "kl_ablation": 4.0 * positions,
        "l0": float(len(tokens)),
        "l1": strong,
        "squares": squares,
        "new_squares": 0.81 * squares,
        "inner": 0.9 * squares,
        "errors": 0.01 * squares,
        "cossim": float(len(tokens)),
        "l2_ratio": 0.9 * len(tokens),
        "explained_legacy": 0.9 * len(tokens),
    }
    return EvaluatedGroup(sums=sums, mean_sums=(strong,) * width, firing=tuple(firing))


def read(group: TextGroup, d_sae: int) -> ReadGroup:
    """The same activations."""
    on = sorted((token % d_sae, at, 1.0 + token % 7) for at, token in counted(group))
    count = sum(map(len, group.texts))
    left = {at for _, at, _ in on}
    return ReadGroup(
        features=array.array("I", [feature for feature, _, _ in on]).tobytes(),
        positions=array.array("I", [at for _, at, _ in on]).tobytes(),
        values=array.array("f", [value for _, _, value in on]).tobytes(),
        norms=array.array("f", [2.0] * count).tobytes(),
        excluded=bytes(at not in left for at in range(count)),
    )
