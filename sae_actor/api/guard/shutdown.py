"""Graceful shutdown: requests still unanswered get 503 and the reason."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from litestar.types import ASGIApp, Receive, Send

from ...errors import NotReadyError
from ...generations import Generations
from .middleware import Middleware, on_start, refuse

STOPPING = NotReadyError("the service is stopping", retry_after=5)
QUICK_SECONDS = 1.0
"""How long requests that are nearly answered may still take."""
GENERATIONS_SECONDS = 1.0
"""How long the ends of generations may take to be recorded."""


class InFlight(Middleware):
    """The innermost middleware: it knows the requests whose answer has not begun."""

    def __init__(self) -> None:
        self._refusing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def end(self, generations: Generations) -> None:
        """End the generations first, then refuse the rest."""
        await asyncio.wait([asyncio.ensure_future(generations.close())], timeout=GENERATIONS_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=QUICK_SECONDS)
        # From here on requests are cut off on purpose: uvicorn need not log an error for each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.refuse()

    def refuse(self) -> None:
        """Answer the unanswered requests with 503, and all later ones."""
        self._refusing = True
        for task in tuple(self._tasks):
            task.cancel()

    async def handle(self, scope: Any, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if self._refusing:
            await refuse(scope, receive, send, STOPPING, connection="close")
            return
        # The router replaces the path in the scope.
        path, task = scope["path"], asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await next_app(scope, receive, on_start(send, lambda _: self._tasks.discard(task)))
        except asyncio.CancelledError:
            if not self._refusing:
                raise
            # An answer that had begun is cut off: its reader did not read the end in time.
            if task in self._tasks:
                task.uncancel()
                scope["path"] = path
                await refuse(scope, receive, send, STOPPING, connection="close")
        finally:
            self._tasks.discard(task)
