"""Limiters: how much is done in one event-loop iteration, runs at a time, happens in a second; what a principal may
have; whose turn it is; when to retry."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Quota:
    """What a principal may have; None: no limit of its own."""

    running: int | None = None
    """Texts that run at a time."""
    waiting: int | None = None
    """Further ones, which wait for those that run."""
    tokens_per_minute: int | None = None
    """Tokens of prompts, and new ones."""


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
    """How fast requests end, from the times of the last ones. A time in which none is under way does not count: it says
    nothing about how fast they are."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._busy_before = 0.0
        """Seconds with requests under way, up to the last time that there was none."""
        self._busy_since = 0.0
        self._ends: deque[float] = deque([0.0], maxlen=RECENT)
        """Busy seconds at each end; first, where none has fallen out yet, the beginning."""

    def _busy(self) -> float:
        return self._busy_before + (self._clock() - self._busy_since if self._under_way else 0.0)

    def began(self) -> None:
        if not self._under_way:
            self._busy_since = self._clock()
        self._under_way += 1

    def ended(self, *, counts: bool = True) -> None:
        """One that began is over. counts: others wait for such an end."""
        busy = self._busy()
        if counts:
            self._ends.append(busy)
        self._under_way -= 1
        if not self._under_way:
            self._busy_before = busy

    def seconds_for(self, count: int) -> int:
        """Seconds until `count` more will have ended, from 1 to `LONGEST`."""
        # Measured up to now, so that the pace falls while nothing ends.
        each = (self._busy() - self._ends[0]) / max(1, len(self._ends) - 1)
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
        self.waiting = 0
        """How many wait for a place."""
        self._throughput = Throughput()

    def locked(self) -> bool:
        """Whether no place is free."""
        return self._free.locked()

    @contextlib.asynccontextmanager
    async def taken(self, *, answer_started: bool = False) -> AsyncIterator[None]:
        """Hold a place. Raises the `error` if the queue is full.

        answer_started: wait even if the queue is full; a started answer cannot be refused.
        """
        if not answer_started and self._free.locked() and self.waiting >= self._most_waiting:
            seconds = max(self._retry_after, self._throughput.seconds_for(self.waiting))
            raise self._error(self._full, retry_after=seconds)
        self.waiting += 1
        self._throughput.began()
        try:
            await self._free.acquire()
        except BaseException:
            self._throughput.ended(counts=False)
            raise
        finally:
            self.waiting -= 1
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
    """What waits, in turn by share, within a share in order.

    Deficit round robin whose quantum is one item, however large: whoever has one waits for at most one of each other's.
    A share that has as many as it may have at a time keeps its place, and is passed over until it has fewer.
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

    def turn(self, most: Mapping[str, int], taken: Mapping[str, int]) -> str | None:
        """Whose turn it is: that of the first share of which fewer are taken than it may have at a time (`most`; others
        may have any number). It stays its turn until one is taken, or a share before it may have one again. None if no
        share may have one."""
        if not most:
            return next(iter(self._shares), None)
        return next((each for each in self._shares if each not in most or taken.get(each, 0) < most[each]), None)

    def first(self, share: str) -> T:
        """Raises `KeyError` where nothing of it waits."""
        return self._shares[share][0]

    def take(self, share: str, count: int = 1) -> list[T]:
        """Take the first of a share, which has its next turn after all others. Raises `KeyError` as `first`."""
        waiting = self._shares.pop(share)
        items = [waiting.popleft() for _ in range(count)]
        self.size -= count
        if waiting:
            self._shares[share] = waiting
        return items

    def keep(self, which: Callable[[T], bool]) -> None:
        """Drop all others."""
        kept = {share: deque(filter(which, waiting)) for share, waiting in self._shares.items()}
        self._shares = {share: waiting for share, waiting in kept.items() if waiting}
        self.size = sum(map(len, self._shares.values()))

    def clear(self) -> None:
        self._shares.clear()
        self.size = 0
