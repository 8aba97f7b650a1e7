"""`/api/state` and `/api/log`: the state at a position, the events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct

from ...domain.events import PAYLOADS, Event
from ...domain.views.resources import ServiceState, state_view
from ...errors import BadRequestError, ForbiddenError
from ...ports import Head
from ...subscriptions import EVERYTHING, EventFilter
from ...subscriptions.frames import line_of
from ..answers import answer, state_of
from ..context import context, grant_of
from ..disconnects import Streamed, followed_by, heard
from ..log_pages import events
from ..operations import Query, operation
from ..requests import MAX_POSITION, whole_number
from ..types import Answer, AnyRequest
from .audit.moments import MOMENT, POSITION, position_of, state_at

PASSING = frozenset({"download_progress", "model_progress", "activations", "checkpoint"})
"""Events without id: progress and the like, never logged."""

MAX_LIMIT = 5000
SHORT = 50
"""Events that are read without waiting for a turn."""
WHOLE_BYTES = 256 * 1024
"""Of payloads: an answer with more of them is sent while it is read."""
PIECE_BYTES = 16 * 1024
"""Of such an answer, at a time."""
MAX_SAE_ID = 200
TYPES = Query("types", {"type": "array", "minItems": 1, "items": {"enum": [*PAYLOADS, *sorted(PASSING)]}},
              "comma-separated event types (default: all)")  # fmt: skip
LIMIT = Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, "at most this many (default: 500)")
AFTER = Query("after", POSITION, "only events after this position")
SAE = Query("sae_id", {"type": "string", "minLength": 1, "maxLength": MAX_SAE_ID}, "only events that name this SAE")


class LogPage(Struct, frozen=True, kw_only=True):
    events: tuple[Event, ...]
    head: Head


@operation("GET", "/api/state", "The state at a position",
           query=(Query("at", MOMENT, "position, or time (default: the head)"),), returns=ServiceState,
           errors=("not_found",), tag="log")  # fmt: skip
async def get_state(request: AnyRequest) -> Answer:
    now = state_of(request)
    if request.query_params.get("at") in (None, str(now.position)):
        return answer(request, state_view(now))
    async with heard(request), context(request).walks.taken():
        at = await position_of(request, "at", now.position)
        return answer(request, state_view(await state_at(request, at)))


def wanted_events(request: AnyRequest) -> EventFilter:
    """What `?types=A,B` and `?sae_id=` leave; unknown types are refused."""
    types, raw = None, request.query_params.get("types")
    if raw is not None:
        types = [name.strip() for name in raw.split(",") if name.strip()]
        unknown = [name for name in types if name not in PAYLOADS and name not in PASSING]
        if unknown or not types:
            raise BadRequestError(f"unknown event type {unknown[0][:80] if unknown else ''}", param="types")
    sae_id = request.query_params.get("sae_id")
    if sae_id is not None and not 1 <= len(sae_id) <= MAX_SAE_ID:
        raise BadRequestError(f"sae_id must have 1 to {MAX_SAE_ID} characters", param="sae_id")
    only = grant_of(request).sae
    if only is not None and sae_id not in (None, only):
        raise ForbiddenError(f"{grant_of(request).name} gets the events of {only} alone", sae_id=only)
    return EventFilter(None if types is None else frozenset(types), sae_id if only is None else only)


@operation("GET", "/api/log", "Events",
           query=(AFTER, LIMIT, TYPES, SAE),
           answers=((200, "application/json"), (200, "application/x-ndjson")), returns=LogPage, items=Event,
           tag="log")  # fmt: skip
async def get_log(request: AnyRequest) -> Answer:
    after = whole_number(request, "after", default=0, low=0, high=MAX_POSITION)
    wanted = wanted_events(request)
    finder, walks = context(request).finder, context(request).walks
    head = context(request).log.head
    if "application/x-ndjson" in request.headers.get("accept", ""):
        lines = _pieces(_lines(events(finder, after, until=head.position, wanted=wanted, places=walks)))
        async with heard(request):
            first = await anext(lines)
        return Streamed(followed_by(first, lines), media_type="application/x-ndjson")
    limit = whole_number(request, "limit", default=500, low=1, high=MAX_LIMIT)
    # Short reads do not wait for long ones.
    places = None if limit <= SHORT and wanted == EVERYTHING else walks
    found = events(finder, after, until=head.position, wanted=wanted, limit=limit, places=places)
    held: list[Event] = []
    size = 0
    async with heard(request):
        async for event in found:
            held.append(event)
            size += len(event.data)
            if size > WHOLE_BYTES:
                break
        else:
            return answer(request, LogPage(events=tuple(held), head=head))
    # A reader that dawdles is not to keep the rest in memory: it is read as it is taken.
    begun = b'{"events":[' + b",".join(map(msgspec.json.encode, held))
    headers = {"etag": f'"{state_of(request).revision}"', "cache-control": "no-store"}
    return Streamed(_pieces(_page(begun, found, head)), media_type="application/json", headers=headers)


async def _page(begun: bytes, found: AsyncIterator[Event], head: Head) -> AsyncIterator[bytes]:
    yield begun
    async for event in found:
        yield b"," + msgspec.json.encode(event)
    yield b'],"head":' + msgspec.json.encode(head) + b"}"


async def _lines(found: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in found:
        yield line_of(event) + b"\n"


async def _pieces(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """As few as are worth a trip to the socket."""
    held = bytearray()
    async for part in parts:
        held += part
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
            await asyncio.sleep(0)  # a page is there at once
    yield bytes(held)
