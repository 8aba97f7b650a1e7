"""The table of routes: each handler is declared once, for litestar and for the OpenAPI description alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from litestar import Response, route
from litestar.handlers import HTTPRouteHandler

from ..errors import ForbiddenError
from .types import Answer, AnyRequest

Handler = Callable[[AnyRequest], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter."""

    name: str
    schema: dict[str, Any]
    about: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """The description of one route."""

    method: str
    path: str
    """OpenAPI form: `/api/saes/{sae_id}`."""
    summary: str
    handler: Handler
    body: Any = None
    """Type of the JSON body."""
    or_body: Any = None
    """Another type that it may be."""
    answers: tuple[tuple[int, str], ...] = ((200, "application/json"),)
    """Status and media type of each good answer."""
    returns: Any = None
    """Type of the JSON answer with status 200 (of a tuple: any of them); one with 202 is always `AcceptedCommand`."""
    items: Any = None
    """Type of each JSON document of an answer that is a stream of them."""
    bodiless: bool = False
    """No body at all means `{}`."""
    examples: dict[str, Any] = field(default_factory=dict)
    """Bodies that could be sent, by what they do."""
    errors: tuple[str, ...] = ()
    """Codes beyond those that any route may answer with."""
    query: tuple[Query, ...] = ()
    command: bool = False
    """Takes Idempotency-Key, If-Match and Prefer."""
    waits: bool = False
    """Takes Prefer."""
    keyed: bool = False
    """Takes Idempotency-Key, unless it streams."""
    open: bool = False
    """Answered without a token."""
    reads: bool = False
    """Changes nothing, whatever its method: a viewer may ask for it."""
    users: bool = False
    """The role `user` may ask for it."""
    rest: bool = False
    """The last part of the path may hold slashes."""
    max_body: int = 4 * 1024 * 1024
    """Bytes that a body may have."""
    media: tuple[str, ...] = ()
    """Media types of a body that is not JSON."""
    tag: str = "service"


OPERATIONS: list[Operation] = []


def operation(method: str, path: str, summary: str, **details: Any) -> Callable[[Handler], Handler]:
    """Put a handler into the table."""

    def keep(handler: Handler) -> Handler:
        OPERATIONS.append(Operation(method, path, summary, handler, **details))
        return handler

    return keep


def is_upload(method: str, path: str) -> bool:
    """Whether the body of such a request is streamed to disk."""
    return any(method == each.method and _matches(each.path, path) for each in OPERATIONS if each.media)


def _matches(template: str, path: str) -> bool:
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        part == there or part.startswith("{") for part, there in zip(wanted, given, strict=True)
    )


def handlers() -> list[HTTPRouteHandler]:
    """Litestar's view of the table."""
    methods: dict[str, set[str]] = {}
    for each in OPERATIONS:
        methods.setdefault(_path(each), {"OPTIONS"}).update(("GET", "HEAD") if each.method == "GET" else (each.method,))
    # First: the one that the framework makes names the methods of a path's first route alone.
    return [*(_options(path, allowed) for path, allowed in methods.items()), *map(_litestar, OPERATIONS)]


def _options(path: str, methods: set[str]) -> HTTPRouteHandler:
    allowed = ", ".join(sorted(methods))

    async def options(request: AnyRequest) -> Answer:  # noqa: ARG001 - every handler has this shape
        return Response(content=b"", status_code=204, headers={"allow": allowed})

    made: HTTPRouteHandler = route(path, http_method=["OPTIONS"], status_code=200)(options)
    return made


def _path(each: Operation) -> str:
    """As the framework writes it."""
    return each.path.replace("}", ":path}" if each.rest else ":str}")


def _refuse_users(request: AnyRequest) -> None:
    caller: Any = request.scope.get("caller")
    if caller is not None and caller.role == "user":
        raise ForbiddenError(f"{caller.name} may not do this: the token has the role user")


def _litestar(each: Operation) -> HTTPRouteHandler:
    handler = each.handler

    async def run(request: AnyRequest) -> Answer:
        if not (each.users or each.open):
            _refuse_users(request)
        return await handler(request)

    run.__name__ = handler.__name__
    made: HTTPRouteHandler = route(
        _path(each),
        http_method=[each.method],  # type: ignore[list-item]
        status_code=each.answers[0][0],
        request_max_body_size=each.max_body,
    )(run)
    return made
