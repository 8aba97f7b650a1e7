"""The log in pages: a page is bounded in bytes, and reading yields to the event loop regularly."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from time import perf_counter

from ..domain.events import Event
from ..domain.evolve import evolve
from ..domain.state import EMPTY, State
from ..eventlog.index import Finder
from ..limits import BoundedSemaphore
from ..subscriptions import EVERYTHING, PAGE, EventFilter

PAGE_BYTES = 512 * 1024
"""Of payloads, about: a page of large events is a short one."""
FIRST = 16
"""Events of the first page, when nothing is known of their sizes."""
SLICE = 0.005
"""Seconds of work at a stretch."""
KEPT = 16
"""States of before that are kept."""


class Pace:
    """Lets others have their turn after each `SLICE` of work."""

    def __init__(self) -> None:
        self._since = perf_counter()

    async def keep(self) -> None:
        if perf_counter() - self._since > SLICE:
            await asyncio.sleep(0)
            self._since = perf_counter()


async def events(
    finder: Finder,
    after: int,
    *,
    until: int,
    wanted: EventFilter = EVERYTHING,
    limit: int | None = None,
    places: BoundedSemaphore | None = None,
) -> AsyncGenerator[Event, None]:
    """At most `limit` events after `after`, up to and including `until`, that are `wanted`.

    Each page is read under `places`, if given. Raises `NotReadyError` if too many are waiting, before the first page
    only.
    """
    given, rows, answer_started = 0, FIRST, False
    while after < until:
        if limit is not None and wanted.sae_id is None:
            rows = min(rows, limit - given)
        async with places.taken(answer_started=answer_started) if places is not None else nullcontext():
            page, after = await finder.page(after, until, rows, wanted.types, wanted.sae_id)
        answer_started = True
        pace = Pace()
        for event in page:
            yield event
            given += 1
            if given == limit:
                return
            await pace.keep()
        mean = sum(len(event.data) for event in page) // len(page) + 1 if page else 1
        rows = max(1, min(PAGE, rows * 4, PAGE_BYTES // mean))


class StateCache:
    """Earlier states, folded from the log: each continues from the nearest one requested recently."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, State] = OrderedDict({0: EMPTY})

    async def state(self, finder: Finder, at: int) -> State:
        nearest = max((position for position in self._kept if position <= at), default=0)
        state = self._kept.get(nearest, EMPTY)
        async for event in events(finder, nearest, until=at):
            state = evolve(state, event)
        self._kept[at] = state
        self._kept.move_to_end(at)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return state
