"""Limiters: so many in a turn of the event loop, so many at a time, so many in a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from .errors import NotReadyError, SAEError


class RequestThrottle:
    """`most` enter in one turn of the event loop, first come, first served, so that turns stay short.

    Who is through is not counted any more: a request may take as long as it likes.
    """

    def __init__(self, most: int = 8) -> None:
        self._free = asyncio.Semaphore(most)

    async def enter(self) -> None:
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)


class BoundedSemaphore:
    """`most` at a time, and `waiting` more until one is free; further ones get `error`, with Retry-After."""

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
        """Whether none is free."""
        return self._free.locked()

    @contextlib.asynccontextmanager
    async def taken(self, *, begun: bool = False) -> AsyncIterator[None]:
        """begun: an answer has begun, and is not refused any more. Raises the `error`."""
        if not begun and self._free.locked() and self._waiting >= self._most_waiting:
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
