"""`/api/events`: the log as a stream, from any position, without a gap."""

from __future__ import annotations

from collections.abc import AsyncIterator

from litestar.response import Stream

from ..actor.broadcast import sse
from .bodies import whole_number
from .context import context
from .reading import AFTER, TYPES, event_types
from .routes import Answer, AnyRequest, operation

OPENING = b": events follow\n\n"
HEARTBEAT = b": still here\n\n"
RETRY = b"retry: 2000\n"
"""Stands at the head of the first event: on its own some readers would take it for an empty one."""
RESET = sse("reset", b'{"why":"the last id is not one of this log"}')
BYE = sse("bye", b'{"why":"the service is stopping"}')


@operation("GET", "/api/events", "Events as they happen (SSE)", query=(AFTER, TYPES),
           answers=((200, "text/event-stream"),), tag="log")  # fmt: skip
async def get_events(request: AnyRequest) -> Answer:
    after = whole_number(request, "after", default=0, low=0, high=2**53)
    types = event_types(request)
    reset = False
    last_id = request.headers.get("last-event-id")
    broadcast = context(request).actor.broadcast
    if last_id is not None:
        position = broadcast.position_of(last_id.strip())
        after, reset = (0, True) if position is None else (position, False)
    elif after > broadcast.head:
        after, reset = 0, True
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(_stream(request, after, types, reset), media_type="text/event-stream", headers=headers)


async def _stream(request: AnyRequest, after: int, types: tuple[str, ...] | None, reset: bool) -> AsyncIterator[bytes]:
    yield OPENING
    head = RETRY
    if reset:
        yield head + RESET
        head = b""
    async for frame in context(request).actor.broadcast.read(after, types=types):
        if frame is None:
            yield HEARTBEAT
        else:
            yield head + frame.data
            head = b""
    yield head + BYE
