"""Numbers that only grow, kept where something happens and read where they are asked for (`GET /metrics`).

They belong to the event loop: added to by its tasks, read between two of their steps. So they need no lock, and two
services of one process have their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

Labels = tuple[str, ...]
"""Label values. A `collections.Counter` of them is a counter; whoever counts sees to it that they are few."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for what takes milliseconds and must not take seconds."""


class Histogram:
    """How many values were at most each of `bounds`, how many there were, and their sum."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, int]]:
        """Each bound in Prometheus' words, and how many values were at most that; the last one has all."""
        return list(zip((*(f"{bound:g}" for bound in self._bounds), "+Inf"), accumulate(self._counts), strict=True))
