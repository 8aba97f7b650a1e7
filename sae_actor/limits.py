"""Limiters: how much is done in one event-loop iteration, runs at a time, happens in a second; whose turn it is; when
to retry."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from .errors import NotReadyError, SAEError

T = TypeVar("T")

RECENT = 64
"""How many ends the pace is measured from."""
NO_DEADLINE = math.inf
LONGEST = 60
"""The longest Retry-After in seconds: OpenAI's clients ignore a longer one."""


AT_A_TIME = 16
"""Things of a request that are worked on before others have their turn."""


async def in_turns(items: Iterable[T], most: int = AT_A_TIME) -> AsyncGenerator[T, None]:
    """The items. After each `most` of them the other tasks of the event loop have their turn."""
    for number, item in enumerate(items, 1):
        yield item
        if number % most == 0:
            await asyncio.sleep(0)


class RequestThrottle:
    """Lets at most `most` requests start in one event-loop iteration, first come, first served.

    So iterations stay short. It does not limit how many run.
    """

    def __init__(self, most: int = 8) -> None:
        self._free = asyncio.Semaphore(most)

    async def enter(self) -> None:
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)


class Throughput:
    """How fast requests end, from the times of the last ones."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=RECENT)

    def ended(self) -> None:
        self._ends.append(self._clock())

    def seconds_for(self, count: int) -> int:
        """Seconds until `count` more will have ended, from 1 to `LONGEST`; 1 if too few have ended."""
        if len(self._ends) < 2:
            return 1
        # Measured up to now, so that the pace falls while nothing ends.
        each = (self._clock() - self._ends[0]) / (len(self._ends) - 1)
        return max(1, min(LONGEST, math.ceil(count * each)))


class BoundedSemaphore:
    """At most `most` at a time; up to `waiting` more wait for a place. Further ones get `error`, with Retry-After: when
    those before it will be through, but at least `retry_after` seconds."""

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
        """Whether no place is free."""
        return self._free.locked()

    @contextlib.asynccontextmanager
    async def taken(self, *, answer_started: bool = False) -> AsyncIterator[None]:
        """Hold a place. Raises the `error` if the queue is full.

        answer_started: wait even if the queue is full; a started answer cannot be refused.
        """
        if not answer_started and self._free.locked() and self._waiting >= self._most_waiting:
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


class FairQueue(Generic[T]):
    """What waits, in turn by share, within a share in order. What is first stays first until it is taken.

    Deficit round robin whose quantum is one item, however large: whoever has one waits for at most one of each other's.
    """

    def __init__(self) -> None:
        self._shares: dict[str, deque[T]] = {}
        """In the order of their turns; none is empty."""
        self.size = 0
        """Read in every step of a scheduler, so no call."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[T]:
        for waiting in self._shares.values():
            yield from waiting

    def push(self, share: str, item: T) -> None:
        self._shares.setdefault(share, deque()).append(item)
        self.size += 1

    @property
    def first(self) -> T:
        """Raises `StopIteration` if it is empty."""
        return next(iter(self._shares.values()))[0]

    def pop(self) -> T:
        """Take the first; its share has its next turn after all others. Raises `StopIteration` if it is empty."""
        share = next(iter(self._shares))
        waiting = self._shares.pop(share)
        item = waiting.popleft()
        self.size -= 1
        if waiting:
            self._shares[share] = waiting
        return item

    def keep(self, which: Callable[[T], bool]) -> None:
        """Drop all others."""
        kept = {share: deque(filter(which, waiting)) for share, waiting in self._shares.items()}
        self._shares = {share: waiting for share, waiting in kept.items() if waiting}
        self.size = sum(map(len, self._shares.values()))

    def clear(self) -> None:
        self._shares.clear()
        self.size = 0
