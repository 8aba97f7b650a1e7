"""Limiters: how many start in one event-loop iteration, how many run at a time, how many happen in a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from .errors import NotReadyError, SAEError


class RequestThrottle:
    """Lets at most `most` requests start in one event-loop iteration, first come, first served.

    So iterations stay short. It does not limit how many run.
    """

    def __init__(self, most: int = 8) -> None:
        self._free = asyncio.Semaphore(most)

    async def enter(self) -> None:
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)


class BoundedSemaphore:
    """At most `most` at a time; up to `waiting` more wait for a place. Further ones get `error`, with Retry-After."""

    def __init__(
        self, most: int, waiting: int, *, full: str, error: type[SAEError] = NotReadyError, retry_after: int = 1
    ) -> None:
        self._full = full
        self._error = error
        self._retry_after = retry_after
        self._free = asyncio.Semaphore(most)
        self._most_waiting = waiting
        self._waiting = 0

    def locked(self) -> bool:
        """Whether no place is free."""
        return self._free.locked()

    @contextlib.asynccontextmanager
    async def taken(self, *, answer_started: bool = False) -> AsyncIterator[None]:
        """Hold a place. Raises the `error` if the queue is full.

        answer_started: wait even if the queue is full; a started answer cannot be refused.
        """
        if not answer_started and self._free.locked() and self._waiting >= self._most_waiting:
            raise self._error(self._full, retry_after=self._retry_after)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class TokenBucket:
    """Rate limit: at most `burst` at once, `per_second` over time."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = self._left = burst
        self._clock = clock
        self._refilled_at = clock()

    def take(self) -> bool:
        """Take a token; False if none is left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
