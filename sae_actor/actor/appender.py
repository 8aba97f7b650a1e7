"""Drafts on their way into the log, in transactions of a bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from ..domain.events import Draft, Event, stored
from ..ports import Clock, EventLog
from .counts import ActorCounts

MOST_EVENTS = 256
"""In one transaction."""


class Appender:
    """Appends what a turn has decided."""

    def __init__(self, log: EventLog, clock: Clock, counts: ActorCounts) -> None:
        self._log, self._clock, self._counts = log, clock, counts
        self.done: list[Event] = []
        """Of the last drafts: what is durable, also if the rest could not be stored."""

    async def append(self, drafts: Sequence[Draft], expected: int) -> tuple[Event, ...]:
        """The drafts as events, durable, after the position `expected`. Raises `LogError`."""
        self.done = []
        for at in range(0, len(drafts), MOST_EVENTS):
            began, some = self._clock.monotonic(), drafts[at : at + MOST_EVENTS]
            recorded = stored(some, await self._log.append(some, expected=expected + at))
            self.done += recorded
            self._counts.appended(recorded, self._clock.monotonic() - began)
        return tuple(self.done)
