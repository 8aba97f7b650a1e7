"""Streamed answers, and clients that disconnect: work for them alone ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from anyio import CancelScope
from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from ..errors import BadRequestError
from .types import AnyRequest


class Streaming(ASGIStreamingResponse):
    """Ends with its reader, whatever body that still sends: the framework takes each piece of it one call deeper.

    `during` is entered while it lasts, whether or not its reader stays for the first piece."""

    def __init__(self, during: Callable[[], AbstractContextManager[None]], **given: Any) -> None:
        super().__init__(**given)
        self._during = during

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._during():
            await super().__call__(scope, receive, send)

    async def _listen_for_disconnect(self, cancel_scope: CancelScope, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel_scope.cancel()


class Streamed(Stream):
    """The answer before it is one."""

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        media_type: str,
        headers: dict[str, str] | None = None,
        during: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(parts, media_type=media_type, headers=headers)
        self._given: dict[str, Any] = {"during": during, "iterator": parts, "media_type": media_type}

    def to_asgi_response(self, *_: Any, headers: dict[str, str] | None = None, **__: Any) -> Streaming:
        return Streaming(**self._given, headers={**(headers or {}), **self.headers}, status_code=200)


async def followed_by(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`first`, which was awaited before the status line, then the rest."""
    yield first
    async for each in rest:
        yield each


async def left(request: AnyRequest) -> None:
    """Wait until the client disconnects; the request's body has been read, or there is none."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def heard(request: AnyRequest) -> AsyncIterator[None]:
    """Around what is done for an answer alone: it is cancelled when the client hangs up."""

    async def watch() -> None:
        await left(request)
        scope.cancel()

    with CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
    if scope.cancelled_caught:
        raise BadRequestError("the client disconnected")  # nobody receives it, but it is counted
