"""The base of all middleware around the application: litestar's `handle(scope, receive, send, next_app)`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import Message, Receive, Send

from ...errors import SAEError
from ..problems import problem_response


class Middleware(ASGIMiddleware):
    """Base of our middleware: wraps the next application, for HTTP requests only."""

    scopes = (ScopeType.HTTP,)


def on_start(send: Send, started: Callable[[Any], object]) -> Send:
    """A `send` that first passes the message that begins the answer to `started`, which may change it."""

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            started(message)
        return send(message)

    return sending


async def refuse(scope: Any, receive: Receive, send: Send, error: SAEError, **headers: str) -> None:
    """Answer with `error` in place of the application."""
    request: Request[Any, Any, Any] = Request(scope, receive, send)
    response = problem_response(scope["path"], error)
    response.headers.update(headers)
    await response.to_asgi_response(app=None, request=request)(scope, receive, send)
