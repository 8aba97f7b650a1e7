"""The ASGI application: the table of routes behind the guard."""

from __future__ import annotations

from litestar import Litestar, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Middleware

from ..errors import SAEError
from . import activations, commands, compare, events, generations, login, metrics, reading, saes, text, web
from .context import Context, context
from .ending import refusable
from .observing import observed
from .openapi import encoded
from .problems import on_error, on_fault, on_http_error, on_no_memory
from .routes import Answer, AnyRequest, handlers, operation
from .security import cookie_name, guarded

ROOMS = (commands, saes, reading, events, text, generations, activations, compare, login, metrics, web)
"""Modules that put their routes into the table."""


@operation("GET", "/schema", "This description (OpenAPI)",
           answers=((200, "application/vnd.oai.openapi+json"),))  # fmt: skip
async def get_schema(request: AnyRequest) -> Answer:
    content = encoded(secured=bool(context(request).access), cookie=cookie_name(request.scope))
    return Response(content=content, media_type="application/vnd.oai.openapi+json")


def create_app(context: Context, *middleware: Middleware) -> ASGIApp:
    """The service over HTTP; its life (start, stop) is the caller's. `middleware` stands around each route."""
    app = Litestar(
        route_handlers=handlers(),
        openapi_config=None,
        state=State({"context": context}),
        exception_handlers={
            SAEError: on_error,
            HTTPException: on_http_error,
            MemoryError: on_no_memory,
            Exception: on_fault,
        },
        logging_config=None,
        middleware=middleware,
    )
    return observed(guarded(refusable(app, context.unanswered), context), context.requests)
