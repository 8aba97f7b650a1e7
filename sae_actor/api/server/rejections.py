"""Refusals on the connection itself, without the application; problems like all others."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from ...errors import NotReadyError, SAEError
from ..guard.headers import HARDENING
from ..problems import openai_view, problem_view


def _headers(content: bytes, *, on_v1: bool = False) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json" if on_v1 else b"application/problem+json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        *HARDENING,
    ]


def written(error: SAEError, default: list[tuple[bytes, bytes]], *, on_v1: bool) -> bytes:
    """The whole answer; `default`: the headers that every answer has."""
    content = msgspec.json.encode(openai_view(error) if on_v1 else problem_view(error))
    status = HTTPStatus(error.status)
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
    lines += [name + b": " + value for name, value in (*default, *_headers(content, on_v1=on_v1))]
    return b"\r\n".join([*lines, b"", content])


async def too_many(scope: Any, receive: Any, send: Any) -> None:
    """In place of the application, on a connection beyond the bound."""
    del receive
    error = NotReadyError("too many connections", retry_after=1)
    on_v1 = scope["path"].startswith("/v1/")
    content = msgspec.json.encode(openai_view(error) if on_v1 else problem_view(error))
    headers = [*_headers(content, on_v1=on_v1), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})
