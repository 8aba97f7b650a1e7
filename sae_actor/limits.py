"""Limiters: so many at a time, so many in a turn of the event loop, so many in a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from .errors import SAEError


class BoundedSemaphore(asyncio.Semaphore):
    """`most` at a time, and `waiting` more until one is free; further ones get the error that `full` makes."""

    def __init__(self, most: int, waiting: int, full: Callable[[], SAEError]) -> None:
        super().__init__(most)
        self._most_waiting = waiting
        self._now_waiting = 0
        self._full = full

    @contextlib.asynccontextmanager
    async def taken(self, *, begun: bool = False) -> AsyncIterator[None]:
        """begun: an answer has begun, and is not refused any more."""
        if not begun and self.locked() and self._now_waiting >= self._most_waiting:
            raise self._full()
        self._now_waiting += 1
        try:
            await self.acquire()
        finally:
            self._now_waiting -= 1
        try:
            yield
        finally:
            self.release()


class RequestThrottle:
    """`most` enter in one turn of the event loop, first come, first served, so that turns stay short.

    Who is through is not counted any more: a request may take as long as it likes.
    """

    def __init__(self, most: int = 8) -> None:
        self._free = asyncio.Semaphore(most)

    async def enter(self) -> None:
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)


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
