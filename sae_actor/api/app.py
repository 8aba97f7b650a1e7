"""The ASGI application: the table of operations, wrapped by the guard."""

from __future__ import annotations

from litestar import Litestar, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp
from litestar.types import Middleware as RouteMiddleware

from ..errors import SAEError
from . import web
from .context import Context, context
from .guard.guard import Guard
from .guard.identity import cookie_name
from .names import without_paths
from .openapi.document import encoded
from .operations import handlers, operation
from .problems import is_openai, on_error, on_fault, on_http_error, on_no_memory
from .routes import (
    backups,
    commands,
    events,
    generations,
    log,
    login,
    metrics,
    models,
    presets,
    saes,
    service,
    steering,
    vectors,
)
from .routes.audit import evidence, explain, export
from .text import activations, compare, tokens
from .text import routes as text
from .text.measuring import contrast, directions, lens, score
from .text.responses import routes as responses
from .text.search import routes as search
from .types import Answer, AnyRequest

ROOMS = (
    commands, models, saes, steering, presets, service, log, backups, evidence, explain, export, events, generations,
    login, metrics, vectors, directions, text, responses, search, activations, contrast, lens, score, compare, tokens,
    web,
)  # fmt: skip
"""Modules that put their routes into the table."""


@operation("GET", "/schema", "This description (OpenAPI)",
           answers=((200, "application/vnd.oai.openapi+json"),))  # fmt: skip
async def get_schema(request: AnyRequest) -> Answer:
    content = encoded(secured=bool(context(request).access), cookie=cookie_name(request.scope))
    return Response(content=content, media_type="application/vnd.oai.openapi+json")


def _on_error(request: AnyRequest, error: SAEError) -> Answer:
    if is_openai(request.scope["path"]):
        error = without_paths(request, error)
    return on_error(request, error)


def create_app(context: Context, *middleware: RouteMiddleware) -> ASGIApp:
    """The service over HTTP; the caller starts and stops it. `middleware` wraps each route."""
    app = Litestar(
        route_handlers=handlers(),
        openapi_config=None,
        state=State({"context": context}),
        exception_handlers={
            SAEError: _on_error,
            HTTPException: on_http_error,
            MemoryError: on_no_memory,
            Exception: on_fault,
        },
        logging_config=None,
        middleware=middleware,
    )
    return context.access_log(Guard(context)(context.in_flight(app)))
