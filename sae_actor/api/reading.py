"""What can be read of the service itself: model, capabilities, state, log, health."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from ..actor import PAGE, Wanted
from ..domain.commands import Download
from ..domain.events import PAYLOADS, Event
from ..domain.evolve import evolve
from ..domain.projections import degraded_view, model_view, running_view, state_view, waiting_for
from ..domain.state import EMPTY
from ..errors import BadRequestError, NotFoundError, NotReadyError
from ..ports import CatalogEntry, Verification
from .bodies import whole_number
from .context import context
from .leaving import heard, walking
from .routes import Answer, AnyRequest, Query, answer, operation, state_of
from .schemas import REPOSITORY, REVISION
from .shapes import Capabilities, Health, LogPage, Model, Ready
from .shapes import State as StateThen
from .streaming import Streamed

PASSING = frozenset({"download_progress", "model_progress", "activations", "checkpoint"})
"""Events without id: progress and the like, never logged."""

MAX_LIMIT = 5000
MAX_POSITION = 2**53
MAX_SAE_ID = 200
POSITION = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}
TYPES = Query("types", {"type": "array", "minItems": 1, "items": {"enum": [*PAYLOADS, *sorted(PASSING)]}},
              "comma-separated event types; all without it")  # fmt: skip
LIMIT = Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, "at most so many; 500 without it")
AFTER = Query("after", POSITION, "only events behind this position")
SAE = Query("sae_id", {"type": "string", "minLength": 1, "maxLength": MAX_SAE_ID}, "only events that name this SAE")


@operation("GET", "/api/model", "The model", returns=Model, tag="model")
async def get_model(request: AnyRequest) -> Answer:
    return answer(request, model_view(state_of(request)))


@operation("GET", "/api/capabilities", "What this build can do", returns=Capabilities)
async def get_capabilities(request: AnyRequest) -> Answer:
    return answer(request, {**context(request).capabilities(), "model": running_view(state_of(request))})


@operation("GET", "/api/catalog", "The SAEs inside a repository",
           query=(Query("repository_id", REPOSITORY, "hub id", required=True),
                  Query("revision", {**REVISION, "default": "main"}, "branch, tag or commit")),
           returns=list[CatalogEntry], errors=("not_found_or_private", "gated", "sae_download_failed"),
           tag="saes")  # fmt: skip
async def get_catalog(request: AnyRequest) -> Answer:
    asked = {"repository_id": request.query_params.get("repository_id", "")}
    if "revision" in request.query_params:
        asked["revision"] = request.query_params["revision"]
    try:
        named = msgspec.convert({"type": "Download", **asked}, Download)
    except msgspec.ValidationError as error:
        raise BadRequestError(str(error)[:300], param="repository_id") from None
    async with heard(request):
        return answer(request, await context(request).hub.catalog(named.repository_id, named.revision))


@operation("GET", "/api/state", "The state as it was",
           query=(Query("at", POSITION, "position; without it, now"),), returns=StateThen,
           errors=("not_found",), tag="log")  # fmt: skip
async def get_state(request: AnyRequest) -> Answer:
    now = state_of(request)
    at = whole_number(request, "at", default=now.position, low=0, high=MAX_POSITION)
    if at > now.position:
        raise NotFoundError(f"position {at} is past the head {now.position}", head=now.position)
    if at == now.position:
        return answer(request, state_view(now))
    state = EMPTY
    async with walking(request):
        async for event in _events(request, 0, Wanted(), until=at):
            state = evolve(state, event)
    return answer(request, state_view(state))


def event_types(request: AnyRequest) -> tuple[str, ...] | None:
    """The types of `?types=A,B`; unknown names are refused."""
    raw = request.query_params.get("types")
    if raw is None:
        return None
    types = tuple(name.strip() for name in raw.split(",") if name.strip())
    unknown = [name for name in types if name not in PAYLOADS and name not in PASSING]
    if unknown or not types:
        raise BadRequestError(f"unknown event type {unknown[0][:80] if unknown else ''}", param="types")
    return types


def wanted_events(request: AnyRequest) -> Wanted:
    """What `?types=` and `?sae_id=` leave."""
    types = event_types(request)
    sae_id = request.query_params.get("sae_id")
    if sae_id is not None and not 1 <= len(sae_id) <= MAX_SAE_ID:
        raise BadRequestError(f"sae_id takes 1 to {MAX_SAE_ID} characters", param="sae_id")
    return Wanted(None if types is None else frozenset(types), sae_id)


@operation("GET", "/api/log", "Events",
           query=(AFTER, LIMIT, TYPES, SAE),
           answers=((200, "application/json"), (200, "application/x-ndjson")), returns=LogPage, items=Event,
           tag="log")  # fmt: skip
async def get_log(request: AnyRequest) -> Answer:
    after = whole_number(request, "after", default=0, low=0, high=MAX_POSITION)
    wanted = wanted_events(request)
    head = context(request).log.head
    if "application/x-ndjson" in request.headers.get("accept", ""):
        return Streamed(_lines(request, after, wanted, head.position), media_type="application/x-ndjson")
    limit = whole_number(request, "limit", default=500, low=1, high=MAX_LIMIT)
    found: list[Event] = []
    async with walking(request):
        async for event in _events(request, after, wanted, until=head.position):
            found.append(event)
            if len(found) == limit:
                break
    return answer(request, {"events": found, "head": head})


async def _lines(request: AnyRequest, after: int, wanted: Wanted, until: int) -> AsyncIterator[bytes]:
    async for event in _events(request, after, wanted, until=until):
        yield msgspec.json.encode(event) + b"\n"


async def _events(request: AnyRequest, after: int, wanted: Wanted, *, until: int) -> AsyncIterator[Event]:
    """Events behind `after` up to and with `until`, read by the page."""
    types = None if wanted.types is None else sorted(wanted.types)
    while after < until:
        page = await context(request).log.read(after, PAGE, types)
        for event in page:
            if event.position > until:
                return
            if wanted.takes(event.type, bytes(event.data)):
                yield event
        if len(page) < PAGE:
            return
        after = page[-1].position


@operation("GET", "/api/log/verify", "Walk the whole hash chain", returns=Verification, tag="log")
async def verify_log(request: AnyRequest) -> Answer:
    async with walking(request):
        return answer(request, await context(request).log.verify())


@operation("GET", "/health", "Whether the process lives", returns=Health, open=True)
async def get_health(request: AnyRequest) -> Answer:
    return answer(request, {"status": "ok", "position": state_of(request).position})


@operation("GET", "/ready", "Whether everything wanted is in place", returns=Ready, errors=("not_ready",),
           open=True)  # fmt: skip
async def get_ready(request: AnyRequest) -> Answer:
    actor, preparing = context(request).actor, context(request).preparing()
    reasons = waiting_for(actor.state) or ([] if preparing is None else [preparing])
    if reasons and actor.read_only is None:
        raise NotReadyError("; ".join(reasons), reasons=reasons, retry_after=1)
    degraded = degraded_view(actor.state)
    status = "read_only" if actor.read_only is not None else "degraded" if degraded else "ready"
    return answer(request, {"status": status, "degraded": degraded, "read_only": actor.read_only})
