"""The shape of all middleware around the application: litestar's `handle(scope, receive, send, next_app)`."""

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
    """Called with the application after it, it gives the one that is to be called in its place."""

    scopes = (ScopeType.HTTP,)


def on_start(send: Send, started: Callable[[Any], object]) -> Send:
    """`send`; the message that begins the answer is given to `started` first, which may change it."""

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
