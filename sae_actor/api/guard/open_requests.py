"""Requests under way, by the token that they came with: they end when it is withdrawn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from litestar.types import ASGIApp, Receive, Send

from ...config.access import Grant
from ...errors import UnauthorizedError
from .middleware import on_start, refuse


class OpenRequests:
    def __init__(self) -> None:
        self._of: dict[Grant, set[asyncio.Task[Any]]] = {}
        self._withdrawn: set[asyncio.Task[Any]] = set()

    async def run(self, grant: Grant, app: ASGIApp, scope: Any, receive: Receive, send: Send) -> None:
        """`app` with a request of this grant. Cancelled, in place of a watcher for each of a thousand streams."""
        task, path, began = asyncio.current_task(), scope["path"], False
        assert task is not None

        def started(_: object) -> None:
            nonlocal began
            began = True

        under_way = self._of.setdefault(grant, set())
        under_way.add(task)
        try:
            await app(scope, receive, on_start(send, started))
        except asyncio.CancelledError:
            if task not in self._withdrawn:
                raise
            task.uncancel()
            if began:
                # Whole already: then the server will hear nothing more of it.
                with contextlib.suppress(RuntimeError):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                scope["path"] = path  # the router has replaced it
                await refuse(scope, receive, send, UnauthorizedError("the token is not valid any more"))
        finally:
            self._withdrawn.discard(task)
            under_way.discard(task)
            if not under_way and self._of.get(grant) is under_way:
                del self._of[grant]

    def end(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            for task in self._of.pop(grant, ()):
                self._withdrawn.add(task)
                task.cancel()
