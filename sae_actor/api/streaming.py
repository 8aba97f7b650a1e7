"""Answers that are sent as they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from anyio import CancelScope
from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive


class Streaming(ASGIStreamingResponse):
    """Ends with its reader, whatever body that still sends: the framework takes each piece of it one call deeper."""

    async def _listen_for_disconnect(self, cancel_scope: CancelScope, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel_scope.cancel()


class Streamed(Stream):
    """The answer before it is one."""

    def __init__(self, parts: AsyncIterator[bytes], *, media_type: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(parts, media_type=media_type, headers=headers)
        self._parts = parts

    def to_asgi_response(self, *_: Any, headers: dict[str, str] | None = None, **__: Any) -> Streaming:
        return self.answer({**(headers or {}), **self.headers})

    def answer(self, headers: dict[str, str]) -> Streaming:
        return Streaming(iterator=self._parts, headers=headers, media_type=self.media_type, status_code=200)
