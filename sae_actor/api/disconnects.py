"""Clients that disconnect: work for them alone ends, and so do streamed answers."""

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


def event_stream(
    frames: AsyncIterator[bytes], during: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Streamed:
    """Server-sent events. The second header tells nginx to pass on each at once."""
    return Streamed(frames, "text/event-stream", {"cache-control": "no-store", "x-accel-buffering": "no"}, during)


@asynccontextmanager
async def on_disconnect(request: AnyRequest, act: Callable[[], object]) -> AsyncIterator[None]:
    """`act` if the client disconnects meanwhile; the request's body has been read, or there is none."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        act()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


@asynccontextmanager
async def heard(request: AnyRequest) -> AsyncIterator[None]:
    """Around what is done for an answer alone: it is cancelled when the client hangs up."""
    with CancelScope() as scope:
        async with on_disconnect(request, scope.cancel):
            yield
    if scope.cancelled_caught:
        raise BadRequestError("the client disconnected")  # nobody receives it, but it is counted
