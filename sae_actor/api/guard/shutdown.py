"""Graceful shutdown: requests still unanswered get 503 and the reason."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import NotReadyError
from ...generations import Generations
from ..problems import problem_response

RETRY_SECONDS = 5
QUICK_SECONDS = 0.2
"""For what would have been answered soon anyway."""
TEXTS_SECONDS = 1.0
"""Time to record the ends of generations."""


class InFlight:
    """Requests whose answer has not begun."""

    def __init__(self) -> None:
        self.refusing = False
        self._tasks: set[asyncio.Task[object]] = set()

    def add(self, task: asyncio.Task[object]) -> None:
        self._tasks.add(task)

    def discard(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)

    async def end(self, texts: Generations) -> None:
        """Drain: end the generations first, then refuse the rest."""
        closing = asyncio.ensure_future(texts.close())
        await asyncio.sleep(QUICK_SECONDS)
        await asyncio.wait([closing], timeout=TEXTS_SECONDS)
        # From here on requests are cut off on purpose: the server has no need to complain of each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.refuse()

    def refuse(self) -> None:
        """Answer them 503, and each one that comes from now on."""
        self.refusing = True
        for task in tuple(self._tasks):
            task.cancel()


def shutdown_middleware(app: ASGIApp, unanswered: InFlight) -> ASGIApp:
    """`app`, its requests in `unanswered` until their answers begin."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != ScopeType.HTTP or task is None:
            await app(scope, receive, send)
            return
        if unanswered.refusing:
            await _refuse(scope, receive, send)
            return
        # The router leaves another one in the scope.
        path, began = scope["path"], False

        async def sending(message: Message) -> None:
            nonlocal began
            if not began:
                began = True
                unanswered.discard(task)
            await send(message)

        unanswered.add(task)
        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:
            if not unanswered.refusing:
                raise
            # One that had begun is cut off: its reader did not take the end in time.
            if not began:
                task.uncancel()
                scope["path"] = path
                await _refuse(scope, receive, send)
        finally:
            unanswered.discard(task)

    return answered


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    request: Request[Any, Any, Any] = Request(scope, receive, send)
    response = problem_response(request, NotReadyError("the service is stopping", retry_after=RETRY_SECONDS))
    response.headers["connection"] = "close"
    await response.to_asgi_response(app=None, request=request)(scope, receive, send)
