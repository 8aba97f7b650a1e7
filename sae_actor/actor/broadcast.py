"""Durable events and passing ones on their way to any number of readers.

Readers pull: each knows the last position it has, takes what is newer from a ring of recent frames that all
readers share, falls back to the log when it lags further behind, and otherwise waits for one future that
every reader waits for. So there is no queue per reader to overflow, and replay and live are one loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from ..domain.events import Event
from ..ports import EventLog

RING = 4096
PASSING_RING = 256
PAGE = 500


class Frame(NamedTuple):
    """One server-sent event, encoded once. `position` is None for what is not in the log."""

    position: int | None
    type: str
    data: bytes


def sse(event_type: str, data: bytes, event_id: str | None = None) -> bytes:
    """The bytes of one server-sent event; JSON has no raw line breaks, so one data line is enough."""
    head = b"" if event_id is None else b"id: " + event_id.encode() + b"\n"
    return head + b"event: " + event_type.encode() + b"\ndata: " + data + b"\n\n"


class Broadcast:
    """Shared by the actor, which publishes, and all readers."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.head = log.head.position
        self._mark = log.log_id[:8]
        self._recent: deque[Frame] = deque(maxlen=RING)
        self._passing: deque[tuple[int, Frame]] = deque(maxlen=PASSING_RING)
        self._passed = 0
        self._news: asyncio.Future[None] | None = None
        self._closed = False
        self.readers = 0

    def event_id(self, position: int) -> str:
        return f"{self._mark}.{position}"

    def position_of(self, event_id: str) -> int | None:
        """The position that an id of this stream names; None for one that cannot be ours."""
        mark, _, number = event_id.partition(".")
        if mark != self._mark or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        position = int(number)
        return position if position <= self.head else None

    def publish(self, events: Sequence[Event]) -> None:
        """Durable events, in order."""
        for event in events:
            self._recent.append(self._frame(event))
            self.head = event.position
        self._wake()

    def announce(self, event_type: str, data: dict[str, Any]) -> None:
        """Something passing (progress): no id, not in the log, may be dropped."""
        self._passed += 1
        self._passing.append((self._passed, Frame(None, event_type, sse(event_type, msgspec.json.encode(data)))))
        self._wake()

    def close(self) -> None:
        """End every reader."""
        self._closed = True
        self._wake()

    def _frame(self, event: Event) -> Frame:
        return Frame(
            event.position, event.type, sse(event.type, msgspec.json.encode(event), self.event_id(event.position))
        )

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        self._news = None

    def _waiter(self) -> asyncio.Future[None]:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    async def read(
        self, after: int, *, types: Iterable[str] | None = None, heartbeat: float = 15.0
    ) -> AsyncIterator[Frame | None]:
        """Every durable event with a position above `after`, once and in order, and passing ones as they come.

        None after `heartbeat` seconds without anything to say, also where `types` leaves out all that happens.
        Ends when the broadcast is closed.
        """
        wanted = frozenset(types) if types is not None else None
        passed = self._passed
        clock = asyncio.get_running_loop().time
        spoke = clock()
        self.readers += 1
        try:
            while True:
                for frame in await self._newer(after):
                    after = frame.position or after
                    if wanted is None or frame.type in wanted:
                        yield frame
                        spoke = clock()
                for number, frame in [each for each in self._passing if each[0] > passed]:
                    passed = number
                    if wanted is None or frame.type in wanted:
                        yield frame
                        spoke = clock()
                if clock() - spoke >= heartbeat:
                    yield None
                    spoke = clock()
                if self.head > after or self._passed > passed:
                    await asyncio.sleep(0)
                elif self._closed:
                    return
                else:
                    await asyncio.wait([self._waiter()], timeout=max(0.0, spoke + heartbeat - clock()))
        finally:
            self.readers -= 1

    async def _newer(self, after: int) -> list[Frame]:
        """A page of frames behind `after`: from the ring if it reaches back that far, else from the log."""
        if after >= self.head:
            return []
        if self._recent and (self._recent[0].position or 0) <= after + 1:
            start = after + 1 - (self._recent[0].position or 0)
            return list(islice(self._recent, start, start + PAGE))
        return [self._frame(event) for event in await self._log.read(after, PAGE)]
