"""Runs as the service sees them: taken on with their texts, computed as an effect, shown, erased."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import msgspec

from ..domain.effects import RunEffect
from ..domain.events import RunKind, RunTexts
from ..domain.measuring.state import RunState
from ..domain.measuring.waiting import next_run
from ..domain.reports import MeasuredRun
from ..domain.state import State
from ..errors import (
    DiskFullError,
    MailboxFullError,
    ModelNotLoadedError,
    NotReadyError,
    SAEError,
    SAENotAttachedError,
)
from ..generations import Generations
from ..generations.monitoring import LabelsOf
from ..ports import Engine, OnProgress
from .contrast import contrast
from .evaluate import evaluate
from .job import Job, in_thread
from .lists import Item
from .profile import profiled
from .statistics import Profiles
from .store import RunFile, RunFolder
from .sweeps.rows import sweep

logger = logging.getLogger(__name__)

TRIES = 3
"""How often a measurement is tried that the device refuses though all that it needs is there."""

Compute = Callable[[Job], Awaitable[dict[str, Any]]]


class Runs:
    """Computes runs. `state` gives the state of now, `progress` announces; neither raises."""

    def __init__(
        self,
        folder: RunFolder,
        engine: Engine,
        state: Callable[[], State],
        progress: OnProgress,
        *,
        again: float = 5.0,
    ) -> None:
        self.folder = folder
        self._own: dict[str, Any] = {}
        self.profiles = Profiles(folder, state)
        self._engine = engine
        self._state = state
        self._progress = progress
        self._again = again
        self._kinds: dict[RunKind, Compute] = {
            "evaluate": evaluate,
            "profile": profiled,
            "contrast": contrast,
            "sweep": sweep,
        }
        self.profiled: Callable[[str], Awaitable[None]] | None = None
        """Told of a run of kind `profile` once its rows are durable."""
        self._paused: dict[str, str] = {}
        """Run → why it does not go on though nothing is missing."""

    def use(self, generations: Generations, labels: LabelsOf, side_by_side: int = 16) -> None:
        """Before the first effect: what makes texts, labels of features, and how many texts are made at a time."""
        self._own = {"generations": generations, "labels": labels, "side_by_side": side_by_side}

    # — taking on —

    async def keep(self, run_id: str, lists: Mapping[str, Iterable[Item]]) -> dict[str, tuple[int, str]]:
        """Write a run's texts, before it is on record: how many there are, and their digests, by list."""

        def write() -> dict[str, tuple[int, str]]:
            with closing(self.folder.create(run_id)) as file:
                return {name: (made.count, made.sha256) for name, made in _added(file, lists).items()}

        return await in_thread(write)

    async def erase(self, run_id: str) -> None:
        await in_thread(lambda: self.folder.erase(run_id))

    # — computing —

    async def perform(self, effect: RunEffect) -> MeasuredRun:
        """The run to its end. Cancelling leaves what is durable; the next call goes on from there."""
        file = await in_thread(lambda: self.folder.open(effect.run_id))
        tries = 0
        try:
            while True:
                before = await in_thread(file.progress)
                try:
                    return await self._done(effect, file)
                except DiskFullError as error:
                    await self._pause(effect, error.detail)
                except (NotReadyError, MailboxFullError) as error:
                    await self._pause(effect, error.detail)
                except (SAENotAttachedError, ModelNotLoadedError) as error:
                    tries = 1 if await in_thread(file.progress) > before else tries + 1
                    if self._is_owed(effect) and tries >= TRIES:
                        raise
                    # What it needs is going away, and this task with it; or it is back already, as another attachment.
                    await self._pause(effect, error.detail, seconds=0.05)
        finally:
            self._paused.pop(effect.run_id, None)
            await in_thread(file.close)

    def _is_owed(self, effect: RunEffect) -> bool:
        run = next_run(self._state())
        return run is not None and run.run_id == effect.run_id

    async def _pause(self, effect: RunEffect, why: str, seconds: float | None = None) -> None:
        self._paused[effect.run_id] = why
        await asyncio.sleep(self._again if seconds is None else seconds)
        self._paused.pop(effect.run_id, None)

    async def _done(self, effect: RunEffect, file: RunFile) -> MeasuredRun:
        job = Job(effect, file, self._engine, self._state, self._progress, **self._own)
        summary = await self._kinds[effect.kind](job)
        if effect.kind == "profile" and self.profiled is not None:
            await self.profiled(effect.run_id)
        found = await in_thread(lambda: (file.count(), file.rows_sha256(), file.kept_like("environment ")))
        count, digest, environments = found
        return MeasuredRun(
            rows=count,
            rows_sha256=digest,
            summary=summary,
            environments={name.split()[1]: msgspec.json.decode(data) for name, data in environments.items()},
        )

    # — showing —

    def paused(self, run: RunState) -> str | None:
        return self._paused.get(run.run_id)

    async def rows(self, run: RunState) -> int:
        """How many rows are durable."""
        if run.status == "completed":
            return run.rows
        try:
            return await in_thread(lambda: self._count(run.run_id))
        except SAEError:
            return 0

    def all_rows(self, run_id: str) -> Iterator[dict[str, Any]]:
        """The rows of a run. Blocks; raises `RunNotFoundError`."""
        with closing(self.folder.open(run_id)) as file:
            yield from file.all_rows()

    def _count(self, run_id: str) -> int:
        with closing(self.folder.open(run_id)) as file:
            return file.count()


def _added(file: RunFile, lists: Mapping[str, Iterable[Item]]) -> dict[str, Any]:
    return {name: file.add_texts(name, items) for name, items in lists.items()}


def described(lists: Mapping[str, tuple[int, str]], sources: Mapping[str, Mapping[str, str]]) -> tuple[RunTexts, ...]:
    return tuple(
        RunTexts(role=role, count=count, sha256=sha256, **sources.get(role, {}))
        for role, (count, sha256) in lists.items()
    )
