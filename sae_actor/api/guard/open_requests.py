"""Requests under way, by the token or the login that they came with: they end when it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, TypeAlias

from litestar.types import ASGIApp, Receive, Send

from ...config.access import Grant
from ...errors import UnauthorizedError
from .middleware import on_start, refuse

Right: TypeAlias = Grant | bytes
"""A token's grant, or the key of a login."""


class OpenRequests:
    def __init__(self) -> None:
        self._of: dict[Right, dict[asyncio.Task[Any] | None, asyncio.Timeout]] = {}

    async def run(
        self, right: Right, app: ASGIApp, scope: Any, receive: Receive, send: Send, *, seconds: float | None = None
    ) -> None:
        """`app` with a request of this right, which lasts for `seconds` at most."""
        path, began = scope["path"], False

        def started(_: object) -> None:
            nonlocal began
            began = True

        under_way, task = self._of.setdefault(right, {}), asyncio.current_task()
        try:
            async with asyncio.timeout(seconds) as lasting:
                under_way[task] = lasting
                await app(scope, receive, on_start(send, started))
        except TimeoutError:
            if not lasting.expired():
                raise
            if began:
                # Whole already: then the server will hear nothing more of it.
                with contextlib.suppress(RuntimeError):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                what = "token" if isinstance(right, Grant) else "login"
                scope["path"] = path  # the router has replaced it
                await refuse(scope, receive, send, UnauthorizedError(f"the {what} is not valid any more"))
        finally:
            under_way.pop(task, None)
            if not under_way and self._of.get(right) is under_way:
                del self._of[right]

    def end(self, rights: Iterable[Right]) -> None:
        """Whoever ends a right of its own, as a logout does, still has its answer."""
        for right in rights:
            for task, lasting in self._of.pop(right, {}).items():
                if task is not asyncio.current_task() and not lasting.expired():
                    lasting.reschedule(0)
