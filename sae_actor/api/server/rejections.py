"""Refusals sent on the connection itself, without the application. They are problems like all others."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from ...errors import NotReadyError, SAEError
from ..guard.headers import HARDENING
from ..guard.middleware import on_start, refuse
from ..problems import problem_response


def written(error: SAEError, default: list[tuple[bytes, bytes]], path: str) -> bytes:
    """The bytes of the whole answer; `default`: the headers that every answer has."""
    problem, status = problem_response(path, error), HTTPStatus(error.status)
    own = {"content-type": problem.media_type, "content-length": len(problem.content), "connection": "close"}
    named = [(name.encode(), str(value).encode()) for name, value in {**own, **problem.headers}.items()]
    lines = [name + b": " + value for name, value in (*default, *named, *HARDENING)]
    return b"\r\n".join([b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), *lines, b"", problem.content])


async def too_many(scope: Any, receive: Any, send: Any) -> None:
    """In place of the application, on a connection beyond the bound."""
    hardened = on_start(send, lambda message: message.update(headers=[*message["headers"], *HARDENING]))
    await refuse(scope, receive, hardened, NotReadyError("too many connections", retry_after=1), connection="close")
