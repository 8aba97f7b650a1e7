"""Effects as child tasks: started when they are owed, cancelled when they are owed no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from ..domain.effects import Effect
from ..domain.messages import Report

logger = logging.getLogger(__name__)

Key = tuple[str, int]


def key_of(effect: Effect) -> Key:
    return (effect.name, effect.request_position)


class EffectRunner:
    """Keeps what runs equal to what is owed.

    `perform` does an effect and gives its report; `undo` cleans up after one that was cancelled because it
    is owed no more (not: because the service ends). Effects on one subject (an SAE, the model) never overlap.
    """

    def __init__(
        self,
        perform: Callable[[Effect], Awaitable[Report]],
        undo: Callable[[Effect], Awaitable[None]],
        report: Callable[[Report], object],
    ) -> None:
        self._perform = perform
        self._undo = undo
        self._report = report
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._last: dict[str, asyncio.Task[None]] = {}
        self._revoked: set[Key] = set()

    def reconcile(self, owed: Sequence[Effect]) -> None:
        """Start what is owed and does not run, cancel what runs and is not owed."""
        wanted = {key_of(effect): effect for effect in owed}
        for key, task in list(self._running.items()):
            if key not in wanted and key not in self._revoked:
                self._revoked.add(key)
                task.cancel()
        for key, effect in wanted.items():
            if key not in self._running:
                subject = getattr(effect, "sae_id", "model")
                task = asyncio.create_task(self._run(effect, key, self._last.get(subject)), name=f"{key[0]}@{key[1]}")
                self._running[key] = self._last[subject] = task

    async def ended(self, name: str, request_position: int) -> None:
        """Return when that effect runs no more."""
        task = self._running.get((name, request_position))
        if task is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        """Cancel everything; what is still owed is taken up at the next start."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, effect: Effect, key: Key, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None and not before.done():
                await asyncio.wait([before])
            report = await self._perform(effect)
        except asyncio.CancelledError:
            if key in self._revoked:
                await self._undo(effect)
            return
        finally:
            self._running.pop(key, None)
            self._revoked.discard(key)
            subject = getattr(effect, "sae_id", "model")
            if self._last.get(subject) is asyncio.current_task():
                del self._last[subject]
        self._report(report)
