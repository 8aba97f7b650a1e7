"""Requested catalogs: few at a time, equal ones shared, cancelled ones ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..limits import BoundedSemaphore
from ..ports import CatalogEntry

RUNNING = 2
"""Each is a process of its own."""
WAITING = 8
"""Different ones that wait for their turn."""

Asked = tuple[str, str]
"""Repository and revision."""


class Listings:
    """`entries` is what lists a repository at a revision."""

    def __init__(self, entries: Callable[[str, str], Awaitable[list[CatalogEntry]]]) -> None:
        self._entries = entries
        full = "too many repositories are being listed"
        self._turns = BoundedSemaphore(RUNNING, WAITING, full=full, retry_after=5)
        self._under_way: dict[Asked, asyncio.Task[list[CatalogEntry]]] = {}
        self._heard: dict[asyncio.Task[list[CatalogEntry]], int] = {}
        """How many wait for each."""

    async def of(self, repository_id: str, revision: str) -> list[CatalogEntry]:
        """Raises what `entries` raises, and `NotReadyError` if too many others are waiting.

        The listing ends when its last waiter is cancelled.
        """
        key = (repository_id, revision)
        listing = self._under_way.get(key)
        if listing is None:
            listing = self._under_way[key] = asyncio.create_task(self._in_turn(key))
            self._heard[listing] = 0
            # Where all who waited have gone, nobody needs to hear of its failure.
            listing.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._heard[listing] += 1
        try:
            return await asyncio.shield(listing)
        finally:
            self._heard[listing] -= 1
            if not self._heard[listing]:
                del self._heard[listing]
                if self._under_way.get(key) is listing:
                    del self._under_way[key]
                listing.cancel()

    async def _in_turn(self, key: Asked) -> list[CatalogEntry]:
        async with self._turns.taken():
            return await self._entries(*key)
