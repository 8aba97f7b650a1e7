"""Limiters: so many in a turn of the event loop, so many at a time, so many in a second; and when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from .errors import NotReadyError, SAEError

RECENT = 64
"""Ends that the pace is taken from."""
LONGEST = 60
"""Seconds: OpenAI's clients ignore a longer Retry-After."""


class RequestThrottle:
    """`most` enter in one turn of the event loop, first come, first served, so that turns stay short.

    Who is through is not counted any more: a request may take as long as it likes.
    """

    def __init__(self, most: int = 8) -> None:
        self._free = asyncio.Semaphore(most)

    async def enter(self) -> None:
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)


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


class BoundedSemaphore:
    """`most` at a time, and `waiting` more until one is free; further ones get `error`, with Retry-After: when those
    before it will be through, and `retry_after` seconds at least."""

    def __init__(
        self, most: int, waiting: int, *, full: str, error: type[SAEError] = NotReadyError, retry_after: int = 1
    ) -> None:
        self._full = full
        self._error = error
        self._retry_after = retry_after
        self._free = asyncio.Semaphore(most)
        self._most_waiting = waiting
        self._waiting = 0
        self._throughput = Throughput()

    def locked(self) -> bool:
        """Whether none is free."""
        return self._free.locked()

    @contextlib.asynccontextmanager
    async def taken(self, *, begun: bool = False) -> AsyncIterator[None]:
        """begun: an answer has begun, and is not refused any more. Raises the `error`."""
        if not begun and self._free.locked() and self._waiting >= self._most_waiting:
            seconds = max(self._retry_after, self._throughput.seconds_for(self._waiting))
            raise self._error(self._full, retry_after=seconds)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._throughput.ended()
            self._free.release()


class TokenBucket:
    """A bucket of tokens: at most `burst` at once, `per_second` over time."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = self._left = burst
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
