"""Durable and transient events for any number of readers.

Readers pull: each knows the last position it has, takes what is newer from a ring of recent frames, falls back to
the log when it lags further, and otherwise waits to be woken. So there is no queue per reader to overflow,
and replay and live are one loop. A frame is encoded once; frames that follow one another are joined once for all
readers at the same cursor, and a page of the log is read once for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

from ..domain.events import Event, LogForked
from ..ports import EventLog, Head
from .frames import EVERYTHING, EventFilter, Frame, sse

RING = 4096
RING_BYTES = 8 * 1024 * 1024
PASSING_RING = 256
PAGE = 500
PAGE_BYTES = 64 * 1024
"""Of frames that are joined; a single larger frame is a page of its own."""
STORED_BYTES = 8 * 1024 * 1024
"""Of pages of the log that are kept for the next reader that comes by."""
JOINED = 64
"""Joined pages kept until something is published: where readers are scattered, each joins its own."""
PUBLISHED = 64
"""Events that are published at once."""
FILTER_SECONDS = 0.005
"""For looking through frames at a time, before others have their turn."""
HEARTBEAT = 15.0


class Page(NamedTuple):
    """What a reader gets in one go, and its cursor afterwards. `data` is empty if its filter leaves out everything."""

    data: bytes
    after: int
    passed: int


LookUp: TypeAlias = Callable[
    [int, int, int, frozenset[str] | None, str | None], Awaitable[tuple[list[Event], int] | None]
]
"""(after, until, most, types, SAE) → such events, and how far that goes; None where nobody knows but the log."""


class Broadcast:
    """Shared by the actor, which publishes, and all readers."""

    def __init__(self, log: EventLog, *, ring: int = RING) -> None:
        self._log = log
        self._last = log.head
        self._mark = log.log_id[:8]
        self._ring = ring
        self._recent: dict[int, Frame] = {}
        self._oldest = self._last.position + 1
        """Position of the first frame in the ring; after the head while there is none."""
        self._recent_bytes = 0
        self._passing: deque[tuple[int, Frame]] = deque(maxlen=PASSING_RING)
        self._passed = 0
        self._joined: dict[tuple[int, int, EventFilter], Page] = {}
        self._stored: OrderedDict[int, list[Frame]] = OrderedDict()
        self._stored_bytes = 0
        self._loading: dict[int, asyncio.Task[list[Frame]]] = {}
        self._resting: dict[asyncio.Future[None], float] = {}
        """Readers without news, and until when they rest at most."""
        self._alarm: asyncio.TimerHandle | None = None
        """For the first of them."""
        self._woken = 0.0
        self._due = 0.0
        self._waking: asyncio.TimerHandle | None = None
        self._closed = False
        self.look_up: LookUp | None = None
        """For readers far back who want few events of many."""
        self.readers = 0
        """Seats that are taken."""
        self.grown = asyncio.Event()
        """Set whenever something was published, for one who follows the log in rests of its own."""

    @property
    def head(self) -> int:
        """Position of the last event that was published."""
        return self._last.position

    def checkpoint(self) -> bytes:
        """The head as an event without id: a reader that keeps it can check later whether this log was changed."""
        return sse("checkpoint", self._last)

    def event_id(self, position: int) -> str:
        return f"{self._mark}.{position}"

    def position_of(self, event_id: str) -> int | None:
        """The position that an id of this stream names; None for one of another stream."""
        mark, _, number = event_id.partition(".")
        if mark != self._mark or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        position = int(number)
        return position if position <= self.head else None

    def follow_branch(self, branch_id: str) -> None:
        """The ids of events are the branch's from here on: an id that another stream of the same log gave out may name
        an event that this one does not have."""
        self._mark = branch_id[:8]
        # What was encoded before has ids of the parent.
        self._recent.clear()
        self._recent_bytes = 0
        self._oldest = self._last.position + 1
        self._joined.clear()
        self._stored.clear()
        self._stored_bytes = 0

    def publish(self, events: Sequence[Event]) -> None:
        """Durable events, in order."""
        for event in events:
            if event.type == LogForked.type and isinstance(forked := event.payload(), LogForked):
                self.follow_branch(forked.branch_id)
            frame = self._frame(event)
            self._recent[event.position] = frame
            self._recent_bytes += len(frame.data)
            self._last = Head(event.position, event.hash)
        self.grown.set()
        while len(self._recent) > self._ring or self._recent_bytes > RING_BYTES:
            self._recent_bytes -= len(self._recent.pop(self._oldest).data)
            self._oldest += 1
        self._wake()

    async def publish_in_turns(self, events: Sequence[Event]) -> None:
        """As `publish`; of thousands of events some at a time, for others on the event loop."""
        for at in range(0, len(events), PUBLISHED):
            self.publish(events[at : at + PUBLISHED])
            if at + PUBLISHED <= len(events):
                await asyncio.sleep(0)

    def announce(self, event_type: str, data: dict[str, Any]) -> None:
        """Something passing (progress): no id, not in the log, may be dropped."""
        self._passed += 1
        self._passing.append((self._passed, Frame(None, event_type, sse(event_type, data))))
        self._wake()

    def close(self) -> None:
        """End every reader; from any thread."""
        self._closed = True
        for news in tuple(self._resting)[:1]:
            news.get_loop().call_soon_threadsafe(self._rouse)

    def _frame(self, event: Event) -> Frame:
        data = sse(event.type, event, self.event_id(event.position))
        return Frame(event.position, event.type, data, event.principal)

    def _wake(self) -> None:
        """Wake the readers that wait for news.

        Then the loop is left to others for as long as serving took, while further news gathers. So a thousand readers
        take at most half of the time, and a command waits for them at most once.
        """
        self._joined.clear()
        if not self._resting or self._waking is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._due:
            self._rouse()
        else:
            self._waking = loop.call_at(self._due, self._rouse)

    def _rouse(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        resting, self._resting = self._resting, {}
        for news in resting:
            _release(news)
        if resting:
            loop = asyncio.get_running_loop()
            self._woken = loop.time()
            loop.call_soon(self._served)  # after each of them

    def _served(self) -> None:
        now = asyncio.get_running_loop().time()
        self._due = now + (now - self._woken)

    def _ring_alarm(self) -> None:
        """Wake those who have rested long enough."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for news in [news for news, until in self._resting.items() if until <= now]:
            del self._resting[news]
            _release(news)
        self._alarm = loop.call_at(min(self._resting.values()), self._ring_alarm) if self._resting else None

    # — reading —

    @contextlib.contextmanager
    def seat(self) -> Iterator[None]:
        """Count as a reader."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1
            if not self.readers:
                self._forget()

    async def read(
        self, after: int, wanted: EventFilter = EVERYTHING, *, heartbeat: float = HEARTBEAT
    ) -> AsyncGenerator[Page | None, None]:
        """Every durable event with a position above `after`, once and in order, and transient ones as they come.

        None every `heartbeat` seconds. Ends when the broadcast is closed.
        """
        passed = self._passed
        clock = asyncio.get_running_loop().time
        beat = clock() + heartbeat
        while True:
            if self.head > after or self._passed > passed:
                page = await self._page(after, passed, wanted)
                _, after, passed = page
                if page.data:
                    yield page
            if clock() >= beat:
                beat = clock() + heartbeat
                yield None
            if self.head > after or self._passed > passed:
                # A reader that replays a long log, or always lags, must not keep the others waiting.
                await asyncio.sleep(0)
            elif self._closed:
                return
            else:
                await self._rest(beat)

    async def _rest(self, until: float) -> None:
        """Wait for news, or for the time `until`."""
        loop = asyncio.get_running_loop()
        # One future for each: who is cancelled while waiting for a shared one would cancel it for all.
        news = loop.create_future()
        self._resting[news] = until
        # One timer for all: each of a thousand readers would set and cancel its own at every event.
        if self._alarm is None or until < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(until, self._ring_alarm)
        try:
            await news
        finally:
            self._resting.pop(news, None)

    async def _page(self, after: int, passed: int, wanted: EventFilter) -> Page:
        """What comes next at this cursor: a bounded page of frames, and all transient ones."""
        key = (after, passed, wanted)
        if key not in self._joined:
            found = await self._wanted(after, wanted)
            frames, end = (await self._newer(after), after) if found is None else found
            # Others at this place may have waited for the same frames, and been here first.
            if key not in self._joined:
                page = self._join(frames, after, passed, wanted)
                if not frames or page.after == frames[-1].position:
                    page = page._replace(after=max(page.after, end))
                # One that leads nowhere is not kept: it would be found again until something is published.
                if len(self._joined) >= JOINED or (page.after, page.passed) == (after, passed):
                    return page
                self._joined[key] = page
        return self._joined[key]

    def _join(self, frames: Sequence[Frame], after: int, passed: int, wanted: EventFilter) -> Page:
        parts: list[bytes] = []
        size = 0
        until = perf_counter() + FILTER_SECONDS
        for frame in frames:
            if size >= PAGE_BYTES or (wanted.sae_id is not None and perf_counter() > until):
                break
            after = frame.position or after
            if wanted.takes(frame):
                parts.append(frame.data)
                size += len(frame.data)
        for number, frame in self._passing:
            if number > passed:
                passed = number
                if wanted.takes(frame):
                    parts.append(frame.data)
        return Page(b"".join(parts), after, passed)

    async def _wanted(self, after: int, wanted: EventFilter) -> tuple[Sequence[Frame], int] | None:
        """The next of the log that a filter takes, and how far that goes; None if they are to be read one by one."""
        until = self._oldest - 1
        if self.look_up is None or until <= after or (wanted.types is None and wanted.sae_id is None):
            return None
        found = await self.look_up(after, until, PAGE, wanted.types, wanted.sae_id)
        return None if found is None else ([self._frame(event) for event in found[0]], found[1])

    async def _newer(self, after: int) -> Sequence[Frame]:
        """At most a page of frames after `after`: from the ring if it reaches back that far, else from the log."""
        if after >= self.head:
            return ()
        if self._oldest <= after + 1:
            return [self._recent[position] for position in range(after + 1, min(after + PAGE, self.head) + 1)]
        first = after - after % PAGE
        frames = self._stored.get(first, [])
        if len(frames) <= after - first:
            loading = self._loading.get(first)
            if loading is None:
                loading = self._loading[first] = asyncio.create_task(self._load(first))
                # A failure is raised in those who wait; where they have all gone, nobody needs to hear of it.
                loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            # Others may wait for the same page: the one who leaves does not take it along.
            frames = await asyncio.shield(loading)
        # Durable events are not visible before they are published: their ids would be refused as future ones.
        return frames[after - first : self.head - first]

    async def _load(self, first: int) -> list[Frame]:
        """The events `first` + 1 to `first` + PAGE, as far as there are any, for all readers that want one of them."""
        try:
            frames = [self._frame(event) for event in await self._log.read(first, PAGE)]
        finally:
            del self._loading[first]
        self._stored_bytes += _size(frames) - _size(self._stored.pop(first, ()))
        self._stored[first] = frames
        while self._stored_bytes > STORED_BYTES and len(self._stored) > 1:
            self._stored_bytes -= _size(self._stored.popitem(last=False)[1])
        return frames

    def _forget(self) -> None:
        """No readers: drop everything kept for the next one, except the ring."""
        self._joined.clear()
        self._stored.clear()
        self._stored_bytes = 0
        if self._alarm is not None and not self._resting:
            self._alarm.cancel()
            self._alarm = None


def _release(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)


def _size(frames: Sequence[Frame]) -> int:
    return sum(len(frame.data) for frame in frames)
