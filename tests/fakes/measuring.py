"""What the fake engine measures: sums that depend on the token ids alone, and add up as real ones do."""

from __future__ import annotations

import array
from collections.abc import Iterator

from sae_actor.ports import ComparedRows, EvaluatedGroup, ReadGroup, TextGroup


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
    firing, texts_firing = [0] * d_sae, [0] * d_sae
    for token in tokens:
        firing[token % d_sae] += 1
    for text in group.texts:
        for feature in {token % d_sae for token in (text[1:] if "sink" in group.exclude else text)}:
            texts_firing[feature] += 1
    sums = {
        "texts": float(len(group.texts)),
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
        "norms": 2.0 * len(tokens),
        "new_norms": 1.8 * len(tokens),
        "squares": squares,
        "new_squares": 0.81 * squares,
        "inner": 0.9 * squares,
        "errors": 0.01 * squares,
        "cossim": float(len(tokens)),
        "l2_ratio": 0.9 * len(tokens),
        "explained_legacy": 0.9 * len(tokens),
    }
    return EvaluatedGroup(
        sums=sums, mean_sums=(strong,) * width, firing=tuple(firing), texts_firing=tuple(texts_firing)
    )


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


def compared(d_sae: int, *, same_width: bool) -> ComparedRows:
    """Each column as long as its number and one more; the two of a pair are alike."""
    near = (0.5,) * d_sae
    return ComparedRows(
        encoder_bias=(-0.25,) * d_sae,
        encoder_norm=tuple(1.0 + feature for feature in range(d_sae)),
        encoder_decoder_cosine=(0.75,) * d_sae if same_width else None,
        nearest_encoder_cosine=near,
        nearest_decoder_cosine=near,
    )
