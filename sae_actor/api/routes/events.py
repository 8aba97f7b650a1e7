"""`/api/events`: the log as a stream, from any position, without a gap."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

from ...domain.events import Event
from ...errors import ForbiddenError, MailboxFullError
from ...subscriptions import Broadcast, EventFilter, sse
from ..context import context, user_of
from ..disconnects import event_stream
from ..operations import Query, operation
from ..requests import MAX_POSITION, whole_number
from ..types import Answer, AnyRequest
from .log import AFTER, SAE, TYPES, wanted_events

OPENING = b": events follow\n\n"
HEARTBEAT = b": still here\n"
"""A comment, and no empty line: some readers take that for an event, once they have seen an id."""
RETRY = b"retry: 2000\n"
"""Precedes the first event: alone, some clients would read it as an empty event."""
RETRY_BETWEEN = (1000, 4000)
"""Milliseconds, with jitter: clients do not all reconnect at the same time."""
LAST_ID = Query("lastEventId", {"type": "string"}, "as the header `Last-Event-ID`, for readers that cannot send one")
USERS = frozenset({
    "ModelLoadRequested", "ModelLoaded", "ModelLoadFailed", "ModelUnloaded",
    "DownloadRequested", "DownloadCompleted", "DownloadFailed", "DownloadCancelled",
    "DeleteRequested", "SaeDeleted", "DeleteFailed",
    "AttachRequested", "SaeAttached", "AttachFailed", "DetachRequested", "SaeDetached", "HookFaulted",
    "SteeringChanged", "PresetSaved", "PresetDeleted", "GenerationStarted", "GenerationFinished",
    "model_progress", "download_progress", "checkpoint",
})  # fmt: skip
"""Types of events that the role `user` gets; of generations its own."""
RESET = sse("reset", {"why": "the last id is not one of this log"})
BYE = sse("bye", {"why": "the service is stopping"})


@operation("GET", "/api/events",
           "Events as they happen (SSE). Every few seconds a `checkpoint`, without id, reports the head of the log",
           query=(AFTER, TYPES, SAE, LAST_ID), answers=((200, "text/event-stream"),), items=Event,
           errors=("mailbox_full",), users=True, tag="log")  # fmt: skip
async def get_events(request: AnyRequest) -> Answer:
    after = whole_number(request, "after", default=0, low=0, high=MAX_POSITION)
    wanted = _seen_by(user_of(request), wanted_events(request))
    reset = False
    last_ids = request.headers.getall("last-event-id", [])
    if not last_ids and (last_id := request.query_params.get("lastEventId")):
        last_ids = [last_id]
    broadcast = context(request).actor.broadcast
    if last_ids:
        # Two of them contradict one another: neither is followed.
        position = broadcast.position_of(last_ids[0].strip()) if len(last_ids) == 1 else None
        after, reset = (0, True) if position is None else (position, False)
    elif after > broadcast.head:
        after, reset = 0, True
    if broadcast.readers >= context(request).max_readers:
        raise MailboxFullError(f"{broadcast.readers} clients already follow the events", retry_after=5)
    frames = _frames(broadcast, after, wanted, reset=reset, heartbeat=context(request).heartbeat)
    return event_stream(frames, broadcast.seat)


def _seen_by(user: str | None, wanted: EventFilter) -> EventFilter:
    """What a user gets of it. `ForbiddenError` for a type that is for the other roles."""
    if user is None:
        return wanted
    if others := (wanted.types or USERS) - USERS:
        raise ForbiddenError(f"{user} does not get {min(others)}: the token has the role user")
    return wanted._replace(types=wanted.types or USERS, texts_of=user)


async def _frames(
    broadcast: Broadcast, after: int, wanted: EventFilter, *, reset: bool, heartbeat: float
) -> AsyncIterator[bytes]:
    checkpoints = wanted.types is None or "checkpoint" in wanted.types
    yield OPENING
    head = RETRY
    if reset:
        yield head + RESET
        head = b""
    async for page in broadcast.read(after, wanted, heartbeat=heartbeat):
        if page is not None:
            yield head + page.data if head else page.data
            head = b""
        elif checkpoints:
            yield HEARTBEAT + head + broadcast.checkpoint()
            head = b""
        else:
            yield HEARTBEAT
    yield b"retry: %d\n" % random.randint(*RETRY_BETWEEN) + BYE
