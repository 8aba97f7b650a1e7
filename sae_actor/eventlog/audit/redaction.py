"""`log redact`: erase one payload for good, on record, with the chain still whole.

The chain holds a payload by its salted digest alone, so payload and salt can go and every hash still verifies. The
PayloadRedacted comes first and names the event; after a kill the next start completes the erasure.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from ...domain.events import ERASED, Event, PayloadRedacted, draft
from ...errors import BadRequestError, NotFoundError
from ..index import INDEX, IndexDatabase
from ..sqlite import SqliteLog

REDACTABLE = ("GenerationStarted", "GenerationFinished", "CommandRejected")
"""Types that the state after the log does not rest on. What is attached, steered or on disk is folded from the
others: without their payloads a restart would find another service."""


async def redact(
    folder: Path,
    position: int,
    why: str,
    *,
    time: str,
    principal: str = "local",
    forget: Callable[[str], None] | None = None,
) -> Event:
    """Erase the payload of an event; returns the PayloadRedacted that records it.

    time: now, RFC 3339 UTC with microseconds. The end of a generation can be redacted only after its start, or
    the fold would take the generation for a running one. forget: erases what is kept of a generation elsewhere; it
    comes first, so that whoever was cut off redacts again.

    Raises `NotFoundError` after the head, `BadRequestError` for an event that cannot be redacted, and the errors of
    `SqliteLog.open`: no service may run on the folder.
    """
    log = await SqliteLog.open(folder)
    try:
        generation_id = await _check(log, position)
        if forget is not None and generation_id is not None:
            forget(generation_id)
        payload = PayloadRedacted(redacted_position=position, why=why)
        record = draft(payload, time=time, command_id=None, principal=principal)
        (event,) = await log.append([record], expected=log.head.position)
        await log.erase(position)
        await asyncio.to_thread(_forget, folder / INDEX, position)
        return event
    finally:
        await log.close()


def _forget(path: Path, position: int) -> None:
    """The index does not hold either what the payload said. A kill before that is made good by the next start, which
    enters the PayloadRedacted."""
    if not path.exists():
        return
    with contextlib.closing(IndexDatabase(path)) as index:
        try:
            if index.check():
                index.erase(position)
                return
        except sqlite3.Error:
            pass  # it goes as a whole
        index.make_anew("it may hold what was erased")


async def _check(log: SqliteLog, position: int) -> str | None:
    """The id of the generation that the event is about."""
    if not 1 <= position <= log.head.position:
        raise NotFoundError(f"there is no event {position}: the log ends at {log.head.position}")
    (event,) = await log.read(position - 1, 1)
    if bytes(event.data) == ERASED:
        raise BadRequestError(f"the payload of event {position} is already erased")
    if event.type not in REDACTABLE:
        raise BadRequestError(f"event {position} is a {event.type}, which the state depends on; it cannot be redacted")
    payload = event.payload()
    started = getattr(payload, "started_position", None)
    if started is not None:
        (beginning,) = await log.read(started - 1, 1)
        if bytes(beginning.data) != ERASED:
            raise BadRequestError(f"redact event {started} first: event {position} ends the generation that it began")
    generation_id: str | None = getattr(payload, "generation_id", None)
    return generation_id
