"""The ends of generations, from the newest back, each compared with a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence

from ....domain.events import Event, GenerationFinished, payload_of
from ....eventlog.index import Finder
from ...log_pages import Pace

NEWEST = 100_000
"""Answers that are looked at: every record has a salt, so each is a digest to compute."""
WINDOW = 50
"""Read at a time: where texts are on record, an event may be large."""


class Scan:
    """Follow it to its end; then `searched` answers were looked at, those that ended after `down_to`."""

    def __init__(self, finder: Finder, token_ids: Sequence[int], after: int) -> None:
        """after: only answers that began after this position."""
        self.searched = 0
        self.down_to = finder.log.head.position
        self._finder = finder
        self._after = after
        self._packed = b"".join(each.to_bytes(4, "little") for each in token_ids)

    async def found(self) -> AsyncGenerator[tuple[Event, GenerationFinished], None]:
        """Answers to this prompt, the newest first; those whose record was erased are not among them."""
        pace = Pace()
        while self.down_to > self._after and self.searched < NEWEST:
            ends, first = await self._finder.newest(GenerationFinished.type, self._after, self.down_to, WINDOW)
            for event in ends:
                if self.searched == NEWEST:
                    return
                payload = payload_of(event)
                self.searched += 1
                self.down_to = event.position - 1
                await pace.keep()
                if isinstance(payload, GenerationFinished) and self._is_of(payload):
                    yield event, payload
            self.down_to = first

    def _is_of(self, payload: GenerationFinished) -> bool:
        if payload.started_position <= self._after or not payload.salt:
            return False
        return hashlib.sha256(bytes.fromhex(payload.salt) + self._packed).hexdigest() == payload.prompt_sha256
