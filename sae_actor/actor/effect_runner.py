"""Effects as child tasks: started when owed, cancelled when no longer owed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from ..domain.effects import Effect, RunEffect
from ..domain.reports import Report
from ..errors import SAEError

logger = logging.getLogger(__name__)

Key = tuple[str, int]


def key_of(effect: Effect) -> Key:
    return (effect.name, effect.request_position)


def subject_of(effect: Effect) -> str:
    """What it works on: effects on one subject never overlap, and one run computes at a time."""
    return "runs" if isinstance(effect, RunEffect) else getattr(effect, "sae_id", "model")


class EffectRunner:
    """Keeps running effects equal to those owed.

    `perform` does an effect and returns its report; `failed` makes the report of a failed one. `undo` cleans up after
    one that is no longer owed, cancelled or reported too late (not when the service stops). `report` hands a report in
    and returns its events once they are recorded (none: it came too late). Effects on one subject (an SAE, the model)
    never overlap. None of the functions raises anything but `SAEError`, and that only `report`."""

    def __init__(
        self,
        perform: Callable[[Effect], Awaitable[Report]],
        failed: Callable[[Effect, SAEError], Report],
        undo: Callable[[Effect], Awaitable[None]],
        report: Callable[[Report], Awaitable[Sequence[object]]],
    ) -> None:
        self._perform = perform
        self._failed = failed
        self._undo = undo
        self._report = report
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._last: dict[str, asyncio.Task[None]] = {}
        self._started: set[Key] = set()
        self._revoked: set[Key] = set()
        self._done: set[Key] = set()
        """Done by this process, though perhaps not on record yet: not to be started again."""
        self._owed: dict[Key, Effect] = {}
        """At the last `reconcile`."""
        self._closed = False

    def reconcile(self, owed: Sequence[Effect]) -> None:
        """Start what is owed and does not run, cancel what runs and is not owed."""
        self._owed = wanted = {key_of(effect): effect for effect in owed}
        self._done = {key for key in self._done if key in wanted or key in self._running}
        for key, task in self._running.items():
            if key not in wanted and key not in self._revoked and key not in self._done:
                self._revoked.add(key)
                self._cancel(key, task)
        for key, effect in wanted.items():
            if key not in self._running and key not in self._done and not self._closed:
                self._start(effect, key)

    def _start(self, effect: Effect, key: Key) -> None:
        subject = subject_of(effect)
        task = asyncio.create_task(self._run(effect, key, self._last.get(subject)), name=f"{key[0]}@{key[1]}")
        self._running[key] = self._last[subject] = task

    async def ended(self, name: str, request_position: int) -> None:
        """Wait until that effect has ended."""
        task = self._running.get((name, request_position))
        if task is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        """Cancel all effects and wait for their cleanup. The next start runs those that are still owed."""
        self._closed = True
        tasks = dict(self._running)
        for key, task in tasks.items():
            if key not in self._revoked and key not in self._done:
                self._cancel(key, task)
        if tasks:
            await asyncio.wait(tasks.values())

    def _cancel(self, key: Key, task: asyncio.Task[None]) -> None:
        """A task cancelled before its first step would not clean up: let it begin and find that it is not wanted."""
        if key in self._started:
            task.cancel()

    async def _run(self, effect: Effect, key: Key, before: asyncio.Task[None] | None) -> None:
        self._started.add(key)
        try:
            if key not in self._revoked and not self._closed:
                if before is not None and not before.done():
                    await asyncio.wait([before])
                report = await self._perform(effect)
                self._done.add(key)
                if not await self._hand_in(effect, report):
                    self._revoked.add(key)
        except asyncio.CancelledError:
            pass  # by reconcile or close, noted in _revoked and _closed
        finally:
            if key in self._revoked:
                await self._undo(effect)
            self._running.pop(key, None)
            self._started.discard(key)
            revoked = key in self._revoked
            self._revoked.discard(key)
            subject = subject_of(effect)
            if self._last.get(subject) is asyncio.current_task():
                del self._last[subject]
            if revoked and not self._closed and key in self._owed and key not in self._done:
                # It was owed again while it ended: what a run waits for may go and come back meanwhile.
                self._start(self._owed[key], key)

    async def _hand_in(self, effect: Effect, report: Report) -> bool:
        """Record the report or, if it is refused as too large, the failure of the effect.

        False if it came too late: the result is not needed. While the service stops, or cannot write, neither can be
        recorded: the next start runs the effect again.
        """
        try:
            return bool(await self._report(report))
        except SAEError as error:
            refused = error
        try:
            return bool(await self._report(self._failed(effect, refused)))
        except SAEError as error:
            logger.warning("the end of %s@%d is not on record: %s", *key_of(effect), error.detail)
            return True
