"""A log in a data folder: without a service, without changing a byte."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from ... import eventlog
from ...domain.events import Event
from ...domain.evolve import evolve
from ...domain.state import EMPTY, State
from ...domain.views.difference import difference
from ...domain.views.explanation import Explaining
from ...domain.views.resources import state_view
from ...errors import BadRequestError, LogDamagedError, NotFoundError
from ...eventlog import events_of, verify_folder
from ...eventlog.audit.offline import finder_in
from ...eventlog.checkpoint import NAME as CHECKPOINT_NAME
from ...ports import Head, Verification
from ..render import answers as rendered
from .source import Moment, View


class FolderSource:
    """The log in `folder`. What lies beyond its sound part is no evidence, and not used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def verify(self, heads: Sequence[Head] = (), *, full: bool = True) -> Verification:  # noqa: ARG002 - all of it
        return proven(await verify_folder(self._folder, heads))

    def events(self, after: int, types: Sequence[str] | None) -> AsyncGenerator[Event, None]:
        return events_of(self._folder, after, types)

    async def state(self, at: Moment) -> View:
        (state,) = await self._states([at])
        view: View = msgspec.to_builtins(state_view(state))
        return view

    async def diff(self, before: Moment, after: Moment) -> View:
        return difference(*await self._states([before, after]))

    async def explain(self, of: str) -> AsyncGenerator[View, None]:
        """Raises `LogDamagedError` if the sound part does not hold the whole record of the generation."""
        verification = await verify_folder(self._folder)
        last = sound_part(verification)
        head = verification.head if verification.ok else Head(max(last, 0), "")
        async with finder_in(self._folder, head, sound=verification.ok) as finder:
            named, wanted = await finder.named(of, last), None
            if (asked := named.found) is not None:
                wanted = await finder.explained(lambda: Explaining(**asked, live=False), last)
        if not verification.ok and (wanted is None or not wanted.complete):
            raise LogDamagedError(verification.detail or "the log does not verify", first_bad=verification.first_bad)
        if wanted is None:
            raise NotFoundError(f"the log has no generation {of}{lost(named.erased)}")
        told = msgspec.to_builtins(proven(verification))
        for view in wanted.views.values():
            yield {**msgspec.to_builtins(view), "log": told}

    async def export(self, to: Path) -> Head:
        head = await eventlog.export_bundle(self._folder, to)
        if not (self._folder / CHECKPOINT_NAME).exists():
            print(
                f"sae-actor: warning: {CHECKPOINT_NAME} is missing in {rendered.plain(rendered.name(self._folder))}: "
                "events missing at the end of the export would go unnoticed",
                file=sys.stderr,
            )
        return head

    async def _states(self, moments: Sequence[Moment]) -> list[State]:
        """The states at positions, at times, or (None) at the head: the fold of the log's sound part only. At a time:
        after the last event written at that time or before.

        Raises `LogDamagedError` beyond the sound part, `BadRequestError` for a position after the head.
        """
        verification = await verify_folder(self._folder)
        if verification.unproven:
            warn(verification)
        last = sound_part(verification)
        farthest = max((moment for moment in moments if isinstance(moment, int)), default=0)
        if verification.ok and farthest > last:
            raise BadRequestError(f"position {farthest} is past the head {last}")
        # A clock may have gone back, so only the whole log shows which event was the last one before a time.
        if farthest > last or (not verification.ok and not all(isinstance(moment, int) for moment in moments)):
            raise LogDamagedError(verification.detail or "the log does not verify", first_bad=verification.first_bad)
        states, state = [EMPTY] * len(moments), EMPTY
        async with aclosing(sound_events(self._folder, verification)) as events:
            async for event in events:
                state = evolve(state, event)
                for i, moment in enumerate(moments):
                    if _reached(event, moment):
                        states[i] = state
        return states


def proven(verification: Verification) -> Verification:
    """An unproven log must not look complete to a reader of `ok` alone."""
    return msgspec.structs.replace(verification, ok=False) if verification.unproven else verification


def warn(verification: Verification) -> None:
    """Warn on standard error why the log does not prove everything that happened."""
    if not verification.ok or verification.unproven:
        found = rendered.verification(msgspec.to_builtins(verification))
        print(f"sae-actor: warning: this log is {found}", file=sys.stderr)


def sound_part(verification: Verification) -> int:
    """The last position that verifies; below 0 if no single event can be read."""
    return verification.head.position if verification.ok else (verification.first_bad or 0) - 1


async def sound_events(
    folder: Path, verification: Verification, types: Sequence[str] | None = None
) -> AsyncGenerator[Event, None]:
    """The events of a folder that verify."""
    last = sound_part(verification)
    async with aclosing(events_of(folder, 0, types)) as events:
        async for event in events:
            if event.position > last:
                return
            yield event


def lost(erased: Sequence[int]) -> str:
    """A hint at the beginnings of texts that say nothing any more."""
    return f"; the payloads of events {', '.join(map(str, erased))}, beginnings of texts, were erased" if erased else ""


def _reached(event: Event, moment: Moment) -> bool:
    if isinstance(moment, int):
        return event.position <= moment
    return moment is None or event.time <= moment
