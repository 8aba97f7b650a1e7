"""The records of the generations to run again."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from ..domain import events as ev
from ..domain.events import Event, payload_of
from ..domain.views.explanation import digest_of_stored
from ..domain.views.provenance import Provenance, follow


class Recorded(Struct, frozen=True, kw_only=True):
    """One generation: the state when it began, its start, its end."""

    generation_id: str
    known: Provenance
    """As it was before the generation began."""
    position: int
    """Of its GenerationStarted."""
    started: ev.GenerationStarted | None
    """None if the payload was erased, or is of a later version."""
    digest: str = ""
    """`intervention_sha256` recomputed from the stored beginning."""
    finished: ev.GenerationFinished | None = None
    """None if no readable end is recorded."""


class Recordings:
    """Follows a log and keeps the requested generations. Feed every event from the first on."""

    def __init__(self, wanted: Collection[str] | None = None) -> None:
        """Only the generations of these ids; None: all with a known id."""
        self._wanted = wanted
        self._known = Provenance()
        self._texts: dict[str, Recorded] = {}
        self._erased: dict[int, Provenance] = {}
        """Starts without a payload: only the end identifies their generation."""

    @property
    def texts(self) -> tuple[Recorded, ...]:
        """In the order in which they began."""
        return tuple(sorted(self._texts.values(), key=lambda text: text.position))

    @property
    def complete(self) -> bool:
        """Whether further events can change nothing."""
        if self._wanted is None:
            return False
        return all(each in self._texts and self._texts[each].finished is not None for each in self._wanted)

    def feed(self, event: Event) -> None:
        payload = payload_of(event)
        if event.type == "GenerationStarted" and payload is None:
            self._erased[event.position] = self._known
        elif isinstance(payload, ev.GenerationStarted) and self._asked_for(payload.generation_id):
            self._texts[payload.generation_id] = Recorded(
                generation_id=payload.generation_id,
                known=self._known,
                position=event.position,
                started=payload,
                digest=digest_of_stored(event),
            )
        elif isinstance(payload, ev.GenerationFinished) and self._asked_for(payload.generation_id):
            self._end(payload)
        self._known = follow(self._known, event)

    def _end(self, finished: ev.GenerationFinished) -> None:
        name, known = finished.generation_id, self._erased.pop(finished.started_position, None)
        begun = self._texts.get(name)
        if begun is not None:
            self._texts[name] = replace(begun, finished=finished)
        elif known is not None:
            self._texts[name] = Recorded(
                generation_id=name, known=known, position=finished.started_position, started=None, finished=finished
            )

    def _asked_for(self, generation_id: str) -> bool:
        return self._wanted is None or generation_id in self._wanted
