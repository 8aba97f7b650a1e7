"""Limits on the requests that begin in one turn of the event loop, so that turns stay short, and on expensive work at
the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from ...errors import NotReadyError, SAEError
from ...telemetry.throughput import Throughput


class RequestThrottle:
    """First come, first served. Who is through is not counted any more: a request may take as long as it likes."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._begun = 0
        self._turning = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """At once while fewer than `most` have entered in this turn of the loop."""
        if self._waiting or self._begun >= self._most:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
            return
        self._begun += 1
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < self._most:
            waiter = self._waiting.popleft()
            if not waiter.done():  # its request was cancelled
                waiter.set_result(None)
                self._begun += 1
        self._turning = self._begun > 0
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)


class BoundedSemaphore:
    """`most` at a time, and `waiting` more until one is free; further ones get `error`, with the seconds until
    those before it will be through."""

    def __init__(self, most: int, waiting: int, *, full: str, error: type[SAEError] = NotReadyError) -> None:
        self._full = full
        self._error = error
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
            raise self._error(self._full, retry_after=self._throughput.seconds_for(self._waiting))
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
