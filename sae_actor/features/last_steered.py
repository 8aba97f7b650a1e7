"""Where features were last steered: the log, read once and then followed."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from ..domain.events import Event, GenerationStarted, SteeringChanged
from ..domain.events.envelope import payload_of
from ..domain.refs import Edit
from ..ports import EventLog

TYPES = (GenerationStarted.__name__, SteeringChanged.__name__)
PAGE = 500


class SteeredAt(Struct, frozen=True, kw_only=True):
    """The last event that steered a feature."""

    position: int
    time: str
    generation_id: str | None
    """None: steering was set."""
    method: str
    strength: float


class LastSteered:
    def __init__(self) -> None:
        self._log_id: str | None = None
        self._upto = 0
        self._found: dict[tuple[str, int], SteeredAt] = {}
        self._reading = asyncio.Lock()

    async def of(self, log: EventLog, sae_id: str, feature: int) -> SteeredAt | None:
        async with self._reading:
            if log.log_id != self._log_id:
                self._log_id, self._upto, self._found = log.log_id, 0, {}
            head = log.head.position
            while self._upto < head:
                page = await log.read(self._upto, PAGE, TYPES)
                for event in page:
                    self._enter(event)
                self._upto = page[-1].position if page else head
        return self._found.get((sae_id, feature))

    def _enter(self, event: Event) -> None:
        match payload_of(event):
            case SteeringChanged(enabled=True) as changed:
                self._steered(event, changed.sae_id, changed.features, None)
            case GenerationStarted() as started:
                for sae in started.intervention:
                    self._steered(event, sae.sae_id, sae.steering, started.generation_id)

    def _steered(self, event: Event, sae_id: str, edits: tuple[Edit, ...], generation_id: str | None) -> None:
        for edit in edits:
            self._found[sae_id, edit.feature] = SteeredAt(
                position=event.position,
                time=event.time,
                generation_id=generation_id,
                method=edit.method,
                strength=edit.strength,
            )
