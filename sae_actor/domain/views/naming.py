"""The generations that a word means: an id, a tag, or a position of the log."""

from __future__ import annotations

from typing import Any

from .. import events as ev
from ..events import Event, payload_of

TYPES = ("GenerationStarted", "GenerationFinished")
"""Events that have to be fed; others are passed over."""


class Named:
    """Follows a log and finds what `of` means: generations that begin or end at that position, if it is one; else the
    generation with that id; else those with that tag."""

    def __init__(self, of: str) -> None:
        self.erased: tuple[int, ...] = ()
        """Beginnings without a payload that no end names: any of them may be meant."""
        self._of = of
        self._position = int(of) if of.isascii() and of.isdigit() and len(of) <= 18 else None
        self._at: str | None = None
        self._by_id = self._by_tag = False

    @property
    def complete(self) -> bool:
        """Whether further events can change nothing."""
        return self._at is not None or (self._position is None and self._by_id)

    @property
    def found(self) -> dict[str, Any] | None:
        """What `Explaining` is to look for; None if there is no such generation."""
        if self._at is not None:
            return {"generation_id": self._at}
        if self._by_id:
            return {"generation_id": self._of}
        return {"tag": self._of} if self._by_tag else None

    def feed(self, event: Event) -> None:
        if event.type not in TYPES:
            return
        payload = payload_of(event)
        if isinstance(payload, ev.GenerationFinished):
            self._name(payload.generation_id, event.position, payload.started_position)
            self.erased = tuple(each for each in self.erased if each != payload.started_position)
        elif isinstance(payload, ev.GenerationStarted):
            self._name(payload.generation_id, event.position)
            self._by_tag |= payload.tag == self._of
        elif event.type == "GenerationStarted":
            self.erased = (*self.erased, event.position)

    def _name(self, generation_id: str, *positions: int) -> None:
        self._by_id |= generation_id == self._of
        if self._position in positions:
            self._at = generation_id
