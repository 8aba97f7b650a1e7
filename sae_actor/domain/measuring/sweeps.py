"""What a sweep comes to: means over the rows of each variant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class VariantMeans:
    """Of the rows of one variant. A value that a row lacks has no part in its mean."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self._values: dict[tuple[str, int], list[float]] = {}
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
            kept = self._values.setdefault((name, number), [])
            kept += [] if value is None else [value]

    def _mean(self, name: str, number: int = 0) -> float | None:
        values = self._values.get((name, number))
        return math.fsum(values) / len(values) if values else None

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
        continuations = sum(name == "continuation_logprobs" for name, _ in self._values)
        if continuations:
            shown["continuation_logprobs"] = [self._mean("continuation_logprobs", n) for n in range(continuations)]
        return shown


def swept(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The summary's `variants`, in the order of the spec."""
    means = {name: VariantMeans(name) for name in names}
    for row in rows:
        means[row["variant"]].add(row)
    return [each.view() for each in means.values()]
