"""What the log holds of each generation: its beginning, its end, the state between."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from .. import events as ev
from ..events import Event, payload_of
from ..refs import canonical_sha256
from .provenance import Provenance, follow


class Recorded(Struct, frozen=True, kw_only=True):
    """One generation on record."""

    generation_id: str | None
    """None if neither a beginning nor an end says it."""
    known: Provenance
    """As it was before the generation began."""
    began: Event
    """Its GenerationStarted."""
    started: ev.GenerationStarted | None
    """None if the payload was erased, or is of a later version."""
    ended: Event | None = None
    finished: ev.GenerationFinished | None = None
    """None if no readable end is recorded."""

    @property
    def digest(self) -> str:
        """`intervention_sha256` over the stored JSON, not over what this version reads in it: a field that was added to
        edits since then has no part in a digest of before. Empty without a beginning."""
        if self.started is None:
            return ""
        stored: list[dict[str, Any]] = msgspec.json.decode(self.began.data)["intervention"]
        return canonical_sha256(stored)


class Recordings:
    """Follows a log and keeps the requested generations.

    Feed every event from the first on; or `take_up` where others have been found already, then every event after that.
    """

    def __init__(
        self,
        generation_ids: Collection[str] | None = None,
        *,
        tag: str | None = None,
        after: int = 0,
        limit: int | None = None,
        principal: str | None = None,
    ) -> None:
        """Only these generations, only those with this tag, only those that began after `after`, at most so many, only
        those that this principal requested."""
        self.found: dict[int, Recorded] = {}
        """By the position at which each began."""
        self.ids = generation_ids
        self.tag = tag
        self.principal = principal
        self.after = after
        self._most = limit if generation_ids is None else len(generation_ids)
        self._known = Provenance()
        self._open: dict[str, int] = {}
        """Requested generations without an end so far → where they began."""
        self._erased: dict[int, Recorded] = {}
        """Beginnings whose payload is gone, or cannot be read: only its end says which generation it was."""

    @property
    def complete(self) -> bool:
        """Whether further events can change nothing."""
        waiting = self._open or any(position in self.found for position in self._erased)
        return self._most is not None and len(self.found) >= self._most and not waiting

    @property
    def erased(self) -> tuple[int, ...]:
        """Beginnings without a payload that no end names."""
        return tuple(self._erased)

    @property
    def missing(self) -> int | None:
        """How many more are wanted; None: all that there are."""
        return None if self._most is None else max(0, self._most - len(self.found))

    def keep(self, text: Recorded) -> None:
        """Add a requested generation that was found by other means, before anything is fed."""
        position = text.began.position
        if text.finished is None and text.started is not None:
            self._open[text.started.generation_id] = position
        elif text.finished is None:
            self._erased[position] = text
        if text.generation_id is not None or self.ids is None:
            self.found[position] = text

    def take_up(self, known: Provenance) -> None:
        """What is fed from here on comes after the events of `known`."""
        self._known = known

    def feed(self, event: Event) -> None:
        payload = payload_of(event)
        mine = self.principal in (None, event.principal)
        if event.type == "GenerationStarted" and payload is None and mine:
            begun = self._erased[event.position] = Recorded(
                generation_id=None, known=self._known, began=event, started=None
            )
            if self.tag is None and self._fits(None, event.position):
                self.found[event.position] = begun
        elif isinstance(payload, ev.GenerationStarted) and mine:
            if self.tag in (None, payload.tag) and self._fits(payload.generation_id, event.position):
                self._open[payload.generation_id] = event.position
                self.found[event.position] = Recorded(
                    generation_id=payload.generation_id, known=self._known, began=event, started=payload
                )
        elif isinstance(payload, ev.GenerationFinished):
            self._end(event, payload)
        self._known = follow(self._known, event)

    def _end(self, event: Event, payload: ev.GenerationFinished) -> None:
        name, position = payload.generation_id, payload.started_position
        begun = self._erased.pop(position, None)
        if name in self._open:
            position = self._open.pop(name)
            begun = self.found[position]
        elif begun is None or not (position in self.found or name in (self.ids or ())):
            return
        self.found[position] = replace(begun, generation_id=name, ended=event, finished=payload)

    def _fits(self, generation_id: str | None, position: int) -> bool:
        full = self._most is not None and len(self.found) >= self._most
        return (self.ids is None or generation_id in self.ids) and position > self.after and not full
