"""Requests under way, by the token that they came with: they end when it is withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...config.access import Grant


class OpenRequests:
    def __init__(self) -> None:
        self._of: dict[Grant, set[asyncio.Event]] = {}

    @contextmanager
    def of(self, grant: Grant) -> Iterator[asyncio.Event]:
        """Entered while a request runs: the event is set when its grant is withdrawn."""
        ended = asyncio.Event()
        under_way = self._of.setdefault(grant, set())
        under_way.add(ended)
        try:
            yield ended
        finally:
            under_way.discard(ended)
            if not under_way and self._of.get(grant) is under_way:
                del self._of[grant]

    def end(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            for ended in self._of.pop(grant, ()):
                ended.set()
