"""Numbers per feature, out of what an SAE read in groups of texts. Blocks: for a worker thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from ..domain.measuring.specs import ProfileSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 50
"""Of a histogram."""
EACH = 5
"""Examples of an interval."""
SLICE = 4_000_000
"""Activations that are in memory at a time, about."""


class ReadTexts(Struct, frozen=True, array_like=True):
    """One durable group: what was read, and in which tokens. Positions run through the group."""

    features: bytes
    positions: bytes
    values: bytes
    norms: bytes
    excluded: bytes
    token_ids: bytes
    """uint32"""
    text_index: bytes
    """uint32, the text of each position"""
    text_position: bytes
    """int32, its place in that text; below 0 for a BOS that another context begins with"""
    context: bytes
    """uint32, the number of its context in the group"""


class Tokens(NamedTuple):
    """All positions, in order."""

    ids: NDArray[Any]
    text_index: NDArray[Any]
    text_position: NDArray[Any]
    context: NDArray[Any]


class Profile(NamedTuple):
    rows: Iterator[dict[str, Any]]
    """In examples `tokens` are ids."""
    tokens: int
    excluded: int
    median_norm: float | None


def profile(groups: Sequence[bytes], d_sae: int, spec: ProfileSpec) -> Profile:
    """A row a feature."""
    import numpy as np  # noqa: PLC0415 - heavy, and only needed here

    read = [msgspec.msgpack.decode(data, type=ReadTexts) for data in groups]
    starts, contexts, at, first = [], [], 0, 0
    for each in read:
        starts.append(at)
        own = np.frombuffer(each.context, "<u4") + first
        contexts.append(own)
        at += len(own)
        first = int(own[-1]) + 1 if len(own) else first
    empty = np.zeros(0, "<u4")
    tokens = Tokens(
        np.concatenate([empty, *(np.frombuffer(each.token_ids, "<u4") for each in read)]),
        np.concatenate([empty, *(np.frombuffer(each.text_index, "<u4") for each in read)]),
        np.concatenate([np.zeros(0, "<i4"), *(np.frombuffer(each.text_position, "<i4") for each in read)]),
        np.concatenate([empty, *contexts]),
    )
    out = np.concatenate([np.zeros(0, "u1"), *(np.frombuffer(each.excluded, "u1") for each in read)]).astype(bool)
    norms = np.concatenate([np.zeros(0, "<f4"), *(np.frombuffer(each.norms, "<f4") for each in read)])
    counted = int((~out).sum())
    sparse = [
        (np.frombuffer(each.features, "<u4"), np.frombuffer(each.positions, "<u4").astype("i8") + start,
         np.frombuffer(each.values, "<f4"))
        for each, start in zip(read, starts, strict=True)
    ]  # fmt: skip
    median = float(np.median(norms[~out].astype("f8"))) if counted else None
    return Profile(_rows(sparse, tokens, counted, d_sae, spec), len(out), int(out.sum()), median)


def _rows(
    sparse: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    tokens: Tokens,
    counted: int,
    d_sae: int,
    spec: ProfileSpec,
) -> Iterator[dict[str, Any]]:
    import numpy as np  # noqa: PLC0415

    total = sum(len(features) for features, _, _ in sparse)
    width = max(1, d_sae * SLICE // max(SLICE, total))
    for low in range(0, d_sae, width):
        high = min(low + width, d_sae)
        parts = []
        for features, positions, values in sparse:
            a, b = np.searchsorted(features, (low, high))
            parts.append((features[a:b], positions[a:b], values[a:b]))
        columns = [np.concatenate(column) if parts else np.zeros(0) for column in zip(*parts, strict=True)]
        features, positions, values = columns or [np.zeros(0, "u4"), np.zeros(0, "i8"), np.zeros(0, "f4")]
        order = np.lexsort((positions, features))
        features, positions, values = features[order], positions[order], values[order]
        edges = np.searchsorted(features, np.arange(low, high + 1))
        for feature in range(low, high):
            mine = slice(edges[feature - low], edges[feature - low + 1])
            row = {"feature": feature, "density": 0.0, "max": 0.0, "p99": 0.0}
            yield row | _seen(positions[mine], values[mine], tokens, counted, spec)


def _seen(
    positions: NDArray[Any], values: NDArray[Any], tokens: Tokens, counted: int, spec: ProfileSpec
) -> dict[str, Any]:
    """positions ascending; values that are not 0."""
    import numpy as np  # noqa: PLC0415

    on = values > 0
    firing, places = values[on].astype("f8"), positions[on]
    if not len(firing):
        return {"histogram": {"max": 0.0, "counts": []}, "examples": [], "quantiles": []}
    top = float(firing.max())
    counts, _ = np.histogram(firing, bins=BINS, range=(0.0, top))
    best = np.lexsort((places, -firing))
    chosen = _distinct(best, places, tokens, spec, spec.top)
    row: dict[str, Any] = {
        "density": len(firing) / counted,
        "max": top,
        "p99": float(np.quantile(firing, 0.99)),
        "histogram": {"max": top, "counts": counts.tolist()},
        "examples": [_example(places[each], positions, values, tokens, spec) for each in chosen],
    }
    row["quantiles"] = [
        {
            "from": low,
            "to": high,
            "share": len(inside) / len(firing),
            "examples": [
                _example(places[each], positions, values, tokens, spec)
                for each in _distinct(inside, places, tokens, spec, EACH)
            ],
        }
        for low, high, inside in _intervals(firing, top, spec.quantiles)
    ]
    return row


def _intervals(firing: NDArray[Any], top: float, count: int) -> Iterator[tuple[float, float, NDArray[Any]]]:
    """Intervals of equal width, the highest first, with the indices of what is in them, in the order of the texts."""
    import numpy as np  # noqa: PLC0415

    at = np.minimum((firing / top * count).astype("i8"), count - 1) if count else firing
    for number in reversed(range(count)):
        yield top * number / count, top * (number + 1) / count, np.nonzero(at == number)[0]


def _distinct(order: NDArray[Any], places: NDArray[Any], tokens: Tokens, spec: ProfileSpec, most: int) -> list[int]:
    """The first of `order`, at most one of a text, none with the context of an earlier one."""
    texts, seen, found = set[int](), set[bytes](), list[int]()
    for each in order:
        if len(found) == most:
            break
        place = int(places[each])
        text = int(tokens.text_index[place])
        if text in texts:
            continue
        first, stop = _window(place, tokens, spec)
        window = tokens.ids[first:stop].tobytes()
        if window in seen:
            continue
        texts.add(text)
        seen.add(window)
        found.append(int(each))
    return found


def _window(place: int, tokens: Tokens, spec: ProfileSpec) -> tuple[int, int]:
    """Of the same context."""
    before, after = spec.context
    own = tokens.context[place]
    first, stop = place, place + 1
    while first > 0 and place - first < before and tokens.context[first - 1] == own:
        first -= 1
    while stop < len(tokens.ids) and stop - place <= after and tokens.context[stop] == own:
        stop += 1
    return first, stop


def _example(
    place: int, positions: NDArray[Any], values: NDArray[Any], tokens: Tokens, spec: ProfileSpec
) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    first, stop = _window(int(place), tokens, spec)
    a, b = np.searchsorted(positions, (first, stop))
    activations = [0.0] * (stop - first)
    for position, value in zip(positions[a:b], values[a:b], strict=True):
        activations[int(position) - first] = float(value)
    return {
        "text_index": int(tokens.text_index[place]),
        "position": int(tokens.text_position[place]),
        "token_index": int(place) - first,
        "tokens": tokens.ids[first:stop].tolist(),
        "activations": activations,
    }
