"""Pooled texts, sparse as they are kept, and what two lists of them come to. Blocks: for a worker thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..domain.measuring.specs import ContrastSpec
from ..errors import BadRequestError
from ..measuring.rows import ContrastedFeature, held_out_of
from ..ports import Activations

if TYPE_CHECKING:
    from numpy.typing import NDArray

IN_MEMORY = 2**24
"""Pooled activations at a time, about."""


class PooledGroup(Struct, frozen=True, array_like=True):
    """One durable group of texts."""

    counts: bytes
    """uint32, for each text: how many features are not 0"""
    features: bytes
    """uint32, ascending in each text"""
    values: bytes
    """float32"""
    bare: bytes
    """One byte for each text: 1 if none of its tokens counts."""


class Counted(Struct, kw_only=True):
    """Of all groups so far."""

    groups: int = 0
    tokens: int = 0
    excluded: int = 0
    active: bytes = b""
    """int64 [d_sae]: at how many counted tokens each feature is above 0"""


def pooled_group(found: Sequence[Activations], so_far: Counted) -> tuple[bytes, Counted]:
    """The group as it is kept, and what was counted with it."""
    import numpy as np  # noqa: PLC0415 - heavy, and only needed here

    features, values, counts = [], [], []
    active = np.frombuffer(so_far.active, "<i8").copy() if so_far.active else None
    for each in found:
        assert each.pooled is not None
        row = np.frombuffer(each.pooled.values, "<f4")
        (on,) = row.nonzero()
        features.append(on.astype("<u4"))
        values.append(row[on])
        counts.append(len(on))
        on_at = np.frombuffer(each.pooled.active, "<i4").astype("<i8")
        active = on_at if active is None else active + on_at
    tokens = sum(each.excluded.count(False) for each in found)
    group = PooledGroup(
        counts=np.array(counts, "<u4").tobytes(),
        features=np.concatenate(features).tobytes(),
        values=np.concatenate(values).tobytes(),
        bare=bytes(all(each.excluded) for each in found),
    )
    counted = Counted(
        groups=so_far.groups + 1,
        tokens=so_far.tokens + tokens,
        excluded=so_far.excluded + sum(len(each.excluded) for each in found) - tokens,
        active=b"" if active is None else active.tobytes(),
    )
    return msgspec.msgpack.encode(group), counted


class Lists(Struct, frozen=True):
    """The texts of two lists, as [texts, features] in parts."""

    groups: tuple[tuple[Any, Any, Any], ...]
    """Row, feature and value of what is not 0; rows run through both lists, without bare texts."""
    positive: int
    negative: int

    @classmethod
    def of(cls, groups: Iterable[bytes], positive: int) -> Lists:
        """The first `positive` texts are the positive ones. Texts of which nothing counts are left out."""
        import numpy as np  # noqa: PLC0415

        parts, at, kept, first = [], 0, 0, 0
        for data in groups:
            group = msgspec.msgpack.decode(data, type=PooledGroup)
            counts, bare = np.frombuffer(group.counts, "<u4"), np.frombuffer(group.bare, "u1").astype(bool)
            numbers = kept + np.cumsum(~bare) - 1
            first += int((~bare[: max(0, positive - at)]).sum())
            at += len(bare)
            kept += int((~bare).sum())
            values = np.frombuffer(group.values, "<f4")
            parts.append((np.repeat(numbers, counts), np.frombuffer(group.features, "<u4"), values))
        return cls(tuple(parts), first, kept - first)

    def dense(self, low: int, high: int) -> NDArray[Any]:
        """Features [low, high) of all texts."""
        import numpy as np  # noqa: PLC0415

        found = np.zeros((self.positive + self.negative, high - low), "<f4")
        for rows, features, values in self.groups:
            mine = (features >= low) & (features < high)
            found[rows[mine], features[mine] - low] = values[mine]
        return found


def contrasted(lists: Lists, counted: Counted, spec: ContrastSpec) -> list[ContrastedFeature]:
    """As `measuring.contrast` does it, some features at a time."""
    import torch  # noqa: PLC0415 - a model has loaded it

    from ..measuring.contrast import PooledTexts, contrast  # noqa: PLC0415

    active = torch.frombuffer(bytearray(counted.active), dtype=torch.int64)
    texts, d_sae = lists.positive + lists.negative, len(active)
    width = max(1, IN_MEMORY // max(1, texts))
    best: list[ContrastedFeature] = []
    for low in range(0, d_sae, width):
        high = min(low + width, d_sae)
        values = torch.from_numpy(lists.dense(low, high))
        found = contrast(
            PooledTexts(values[: lists.positive]),
            PooledTexts(values[lists.positive :]),
            active=active[low:high],
            tokens=counted.tokens,
            top=spec.top,
            held_out=spec.held_out,
        )
        best += (replace(each, feature=each.feature + low) for each in found)
        best = sorted(best, key=lambda each: rank_of(each, lists, spec))[: spec.top]
    return best


def rank_of(row: ContrastedFeature, lists: Lists, spec: ContrastSpec) -> tuple[float, float, int]:
    """The order of `contrast`, in whole numbers: `auroc` is such a number, halved, over the pairs of texts."""
    pairs = 1
    for count in (lists.positive, lists.negative):
        pairs *= count - (held_out_of(count, spec.held_out) if spec.held_out else 0)
    return -abs(round(row.auroc * 2 * pairs) - pairs), -abs(row.difference), row.feature


def refuse_few(positive: int, negative: int, held_out: float) -> None:
    """`BadRequestError` for so few texts that they cannot be told apart."""
    for name, count in (("positive", positive), ("negative", negative)):
        if count == 0:
            raise BadRequestError(f"no {name} text has a token that is counted", param=f"spec.{name}")
        if held_out and count <= held_out_of(count, held_out):
            why = f"held_out {held_out:g} of {count} {name} texts leaves none to choose features by"
            raise BadRequestError(why, param="spec.held_out")
