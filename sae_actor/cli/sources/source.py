"""What a log can be asked, wherever it is read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ...domain.events import Event
from ...ports import Head, Verification

View: TypeAlias = dict[str, Any]
Moment: TypeAlias = int | str | None
"""A position; a time, as the log writes it; None: the head."""


class LogSource(Protocol):
    """Each method raises the errors of its log: damage, a log that is held, a service that is not reachable."""

    async def verify(self, heads: Sequence[Head] = (), *, full: bool = True) -> Verification:
        """The check of the chain; `heads` are witnessed ones. Not `full`: what is known of it without walking it all,
        if something is."""

    def events(self, after: int, types: Sequence[str] | None) -> AsyncGenerator[Event, None]:
        """The events after a position, of these types if given."""

    async def state(self, at: Moment) -> View:
        """The state then."""

    async def diff(self, before: Moment, after: Moment) -> View:
        """What changed from one moment to the other."""

    def explain(self, of: str) -> AsyncGenerator[View, None]:
        """What was active for the answer with this id, at this position, or for each with this tag, and `log`: the
        check of the log. Raises `NotFoundError`."""

    async def export(self, to: Path) -> Head:
        """Write the log to a folder, or to a `.tar`; its head. Raises `BadRequestError` if `to` exists."""
