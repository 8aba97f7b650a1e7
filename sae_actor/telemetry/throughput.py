"""How fast something gets done, for those who are to come back later."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

RECENT = 64
"""Ends that the pace is taken from."""
LONGEST = 60
"""Seconds: OpenAI's clients ignore a longer Retry-After."""


class Throughput:
    """When the last few of them ended."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=RECENT)

    def ended(self) -> None:
        self._ends.append(self._clock())

    def seconds_for(self, count: int) -> int:
        """Seconds until `count` more will have ended, from 1 to `LONGEST`; 1 where nothing is known."""
        if len(self._ends) < 2:
            return 1
        # Up to now: where nothing ends any more, the pace sinks.
        each = (self._clock() - self._ends[0]) / (len(self._ends) - 1)
        return max(1, min(LONGEST, math.ceil(count * each)))
