"""The state before an answer, with the events that its parts come from: folded of those that count, not of all."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Sequence

from ...domain.events import AttachRequested, Event, payload_of
from ...domain.views.provenance import APART, SET_ANEW, Provenance, follow
from .database import IndexDatabase
from .readable import Readable
from .tables import UnfitIndexError

CHUNK = 256
"""Turns that are folded at a time; after each such chunk the provenance is kept for later look-ups."""
PAGE = 500


class Histories:
    """Provenances at earlier positions, each continued from the nearest one that is kept."""

    def __init__(self, log: Readable, index: IndexDatabase) -> None:
        self._log = log
        self._index = index
        self._kept: list[tuple[int, Provenance]] = [(0, Provenance())]
        """By the position of the last event in it."""
        self._last = (0, Provenance())
        """That of the last look-up: the next one of a page is near it."""

    async def before(self, position: int, upto: int) -> Provenance:
        """As it was before the event at `position`. upto: as far as the index is used. Raises `UnfitIndexError`."""
        at, known = self._kept[bisect.bisect_left(self._kept, position, key=lambda each: each[0]) - 1]
        if at < self._last[0] < position:
            at, known = self._last
        end = min(position, upto + 1)
        while at < end - 1:
            sae_ids = {each.sae_id for each in known.state.attachments}
            turns, steered = await asyncio.to_thread(self._index.since, at, end, CHUNK, sae_ids)
            if not turns:
                known, at = await self._with(known, [], steered), end - 1
            elif len(turns) < CHUNK:
                known, at = await self._with_turns(known, sae_ids, turns, [at, *turns, end]), end - 1
            else:
                known, at = await self._with_turns(known, sae_ids, turns, [at, *turns]), turns[-1]
                self._keep(at, known)
        while at < position - 1:
            for event in await self._log.read(at, min(PAGE, position - 1 - at)):
                known, at = follow(known, event), event.position
        self._last = (at, known)
        return known

    async def _with_turns(
        self, known: Provenance, sae_ids: set[str], turns: Sequence[int], bounds: Sequence[int]
    ) -> Provenance:
        """With these turns, and the last steering of each SAE between each two bounds."""
        events = await read_at(self._log, turns)
        asked = (payload.sae_id for each in events if isinstance(payload := payload_of(each), AttachRequested))
        steered = await asyncio.to_thread(self._index.steered, sae_ids | {*asked}, bounds)
        return await self._with(known, events, steered)

    async def _with(self, known: Provenance, turns: Sequence[Event], steered: Sequence[int]) -> Provenance:
        steerings = await read_at(self._log, sorted(steered)) if steered else []
        if any(event.type in APART for event in turns) or any(event.type != SET_ANEW for event in steerings):
            raise UnfitIndexError("it names events that no explanation rests on")
        for event in sorted([*turns, *steerings], key=lambda each: each.position):
            known = follow(known, event)
        return known

    def _keep(self, at: int, known: Provenance) -> None:
        place = bisect.bisect_left(self._kept, at, key=lambda each: each[0])
        if place == len(self._kept) or self._kept[place][0] != at:
            self._kept.insert(place, (at, known))


async def read_at(log: Readable, positions: Sequence[int]) -> list[Event]:
    """The events at these positions, in order. Raises `UnfitIndexError` if the log has none at one of them."""
    found: list[Event] = []
    for first in range(0, len(positions), PAGE):
        found += await log.at(positions[first : first + PAGE])
    if [event.position for event in found] != list(positions):
        raise UnfitIndexError("it points past the log")
    return found
