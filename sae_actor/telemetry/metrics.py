"""Numbers that only grow, kept where something happens and read where they are asked for (`GET /metrics`).

They belong to the event loop: added to by its tasks, read between two of their steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

Labels = tuple[str, ...]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for what takes milliseconds and must not take seconds."""


class Counter:
    """A count for each combination of label values; the caller sees to it that those are few."""

    def __init__(self) -> None:
        self._counts: dict[Labels, float] = {}

    def add(self, *labels: str, amount: float = 1) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + amount

    def __getitem__(self, labels: Labels) -> float:
        return self._counts.get(labels, 0)

    def __iter__(self) -> Iterator[tuple[Labels, float]]:
        return iter(sorted(self._counts.items()))


class Histogram:
    """How many values were at most each of `bounds`, how many there were, and their sum."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def cumulative(self) -> list[int]:
        """For each bound, how many values were at most that."""
        total, found = 0, []
        for count in self._counts[:-1]:
            total += count
            found.append(total)
        return found
