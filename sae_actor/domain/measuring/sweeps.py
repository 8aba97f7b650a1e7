"""What a sweep comes to: means over the rows of each variant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Mean:
    """Exact, as `math.fsum` is, of any number of values: they are not kept."""

    def __init__(self) -> None:
        self._count = 0
        self._parts: list[float] = []
        """Their exact sum is that of the values; few, none of which overlap."""

    def add(self, value: float) -> None:
        self._count += 1
        parts = []
        for part in self._parts:
            large, small = (part, value) if abs(part) >= abs(value) else (value, part)
            value = large + small
            if rest := small - (value - large):
                parts.append(rest)
        self._parts = [*parts, value]

    @property
    def value(self) -> float | None:
        return math.fsum(self._parts) / self._count if self._count else None


class VariantMeans:
    """Of the rows of one variant. A value that a row lacks has no part in its mean."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self._means: dict[tuple[str, int], Mean] = {}
        self._features: list[int] = []
        self._reasons: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        if "redacted" in row:
            return
        self._reasons[row["finish_reason"]] += 1
        self._add("ce_unsteered", [row["ce_unsteered"]])
        self._add("tokens_generated", [row["receipt"]["tokens_generated"]])
        self._features = [each["feature"] for each in row.get("activations", ())]
        self._add("activations", [each["activation"] for each in row.get("activations", ())])
        self._add("continuation_logprobs", row.get("continuation_logprobs", ()))

    def _add(self, name: str, values: Sequence[float | None]) -> None:
        for number, value in enumerate(values):
            mean = self._means.setdefault((name, number), Mean())
            if value is not None:
                mean.add(value)

    def _mean(self, name: str, number: int = 0) -> float | None:
        mean = self._means.get((name, number))
        return None if mean is None else mean.value

    def view(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "variant": self.name,
            "rows": self.rows,
            "ce_unsteered": self._mean("ce_unsteered"),
            "tokens_generated": self._mean("tokens_generated"),
            "finish_reasons": dict(sorted(self._reasons.items())),
        }
        if self._features:
            shown["activations"] = [
                {"feature": feature, "activation": self._mean("activations", number)}
                for number, feature in enumerate(self._features)
            ]
        continuations = sum(name == "continuation_logprobs" for name, _ in self._means)
        if continuations:
            shown["continuation_logprobs"] = [self._mean("continuation_logprobs", n) for n in range(continuations)]
        return shown


def swept(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The summary's `variants`, in the order of the spec."""
    means = {name: VariantMeans(name) for name in names}
    for row in rows:
        means[row["variant"]].add(row)
    return [each.view() for each in means.values()]
