"""Connections that do not come forward, and more of them than there is room for.

uvicorn waits for ever for the rest of a request, and for a reader of an answer. `Patient` is its HTTP/1.1 protocol
with a clock. It looks at its connection a few times per limit and asks what the peer owes it:

    the head of a request    in `request_seconds`, at most `MAX_HEAD` bytes of it            408, 400
    the body                 in `request_seconds` and a second for every `BODY_RATE` bytes   408
    the rest of a body that was answered already (413, 401)   in `LINGER_SECONDS`            closed
    room for an answer       some of it in `stalled_seconds`, `READ_RATE` bytes a second     closed
    anything, when idle      in `request_seconds`                                            closed

Beyond `connections` every request is answered 503, and beyond `spare` more nothing is read any more. Answers from
here are problems, as all others are.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..errors import BadRequestError, NotReadyError, RequestTimeoutError, SAEError
from .problems import openai_view, problem_view
from .security import HARDENING

MAX_HEAD = 64 * 1024
MAX_HEADERS = 128
BODY_RATE = 16 * 1024
READ_RATE = 4 * 1024
LINGER_SECONDS = 5.0
"""An answer that comes before the request has been sent is lost if the connection is closed at once."""
SPARE = 64
"""Connections beyond the bound that are answered still."""
LOOKS = 4
"""Looks at a connection within its shortest limit."""


class Limits(NamedTuple):
    connections: int = 4096
    spare: int = SPARE
    request_seconds: float = 20.0
    stalled_seconds: float = 20.0


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """What uvicorn takes as `http`: it only ever calls it."""
    return partial(Patient, limits=limits)  # type: ignore[return-value]


class Patient(HttpToolsProtocol):
    """Relies on these parts of uvicorn's protocol, which a test keeps an eye on: `cycle` is the newest request of the
    connection, `flow.write_paused`, `flow.read_paused`, `app` is what a new request is handed to, a cycle that is
    `disconnected` neither waits nor sends, `send_400_response`."""

    def __init__(self, *args: Any, limits: Limits, **given: Any) -> None:
        super().__init__(*args, **given)
        self._limits = limits
        self._looking: asyncio.TimerHandle | None = None
        self._running: list[RequestResponseCycle] = []
        """Requests that are not answered yet: the one that is handled, and those behind it in the pipeline."""
        self._head_since: float | None = None
        self._head_bytes = 0
        self._head_is_new = False
        self._body_since: float | None = None
        self._body_bytes = 0
        self._idle_since: float | None = None
        self._owed: tuple[float, int] | None = None
        """Since when the peer takes what we have for it, and how much there was."""

    # — what happens on the connection —

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        excess = len(self.connections) - self._limits.connections
        if excess > self._limits.spare:
            transport.abort()
            return
        if excess > 0:
            self.app = _too_many
        self._idle_since = self.loop.time()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        # Of a pipeline uvicorn tells the newest request alone.
        for cycle in self._running:
            cycle.disconnected = True
            cycle.message_event.set()
        self._running.clear()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_since is None:
            return
        self._head_bytes += 0 if self._head_is_new else len(data)
        self._head_is_new = False
        if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self._end(BadRequestError("the head of the request is too large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_since, self._head_bytes, self._head_is_new = self.loop.time(), 0, True
        self._idle_since = None

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")  # the parser makes a 400 of it

    def _count(self, size: int) -> None:
        """Of the head within one piece of data."""
        if self._head_is_new:
            self._head_bytes += size
            if self._head_bytes > MAX_HEAD:
                raise ValueError("too large a head")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._running = [each for each in self._running if not each.response_complete]
        self._running.append(self.cycle)
        self._head_since = self._owed = None
        self._body_since, self._body_bytes = self.loop.time(), 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._body_since = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        now = self.loop.time()
        if self._body_since is not None and self.cycle.response_complete:
            self._body_since = now
        elif self._head_since is None:
            self._idle_since = now

    def resume_writing(self) -> None:
        super().resume_writing()
        # The peer has read: what is written from now on is new.
        self._owed = None

    # — what is owed —

    def _look_later(self) -> None:
        shortest = min(self._limits.request_seconds, self._limits.stalled_seconds)
        self._looking = self.loop.call_later(shortest / LOOKS, self._look)

    def _look(self) -> None:
        self._look_later()
        now = self.loop.time()
        if self._is_stalled(now):
            self._reset()
        elif not self.transport.is_closing() and not self.flow.read_paused:
            self._look_at_request(now)

    def _is_stalled(self, now: float) -> bool:
        """While writing is paused, or nothing more will be written, what is left can only become less."""
        ended = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        left = self._left() if ended or self.flow.write_paused else 0
        if left == 0 or (self._owed is not None and left > self._owed[1]):
            self._owed = None
        if left == 0:
            return False
        if self._owed is None:
            self._owed = (now, left)
        since, at_first = self._owed
        return now - since > self._limits.stalled_seconds + (at_first - left) / READ_RATE

    def _reset(self) -> None:
        """Closing would wait for the peer to take what is left, here first and then in the system."""
        connection = self.transport.get_extra_info("socket")
        if connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _left(self) -> int:
        """Bytes that the peer has not taken: the transport's, and those of the system, which takes megabytes ahead, so
        that ours alone can stand still for longer than the limit before a slow reader."""
        left = self.transport.get_write_buffer_size()
        file = self.transport.get_extra_info("socket").fileno()
        if file < 0:
            return left
        (queued,) = struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)))
        return left + int(queued)

    def _look_at_request(self, now: float) -> None:
        limit = self._limits.request_seconds
        if self._head_since is not None:
            if now - self._head_since > limit:
                self._end(RequestTimeoutError("the head of the request did not arrive in time"))
        elif self._body_since is not None:
            if self.cycle.response_complete:
                if now - self._body_since > min(limit, LINGER_SECONDS):
                    self.transport.close()
            elif now - self._body_since > limit + self._body_bytes / BODY_RATE:
                self._end(RequestTimeoutError("the body of the request did not arrive in time"))
        elif self._idle_since is not None and not self._is_answering() and now - self._idle_since > limit:
            self.transport.close()

    def _is_answering(self) -> bool:
        return any(not each.response_complete for each in self._running)

    # — answers from here —

    def send_400_response(self, msg: str) -> None:
        """uvicorn's word for what is no HTTP."""
        self._end(BadRequestError("this is not HTTP that can be read"))
        del msg

    def _end(self, error: SAEError) -> None:
        """Close, with an answer where it would be taken for this request's: no other is owed, and none has begun."""
        waiting = [each for each in self._running if not each.response_complete]
        arriving = self.cycle if self._body_since is not None else None
        if all(each is arriving and not each.response_started for each in waiting):
            on_v1 = bool(waiting) and str(waiting[-1].scope["path"]).startswith("/v1/")
            self.transport.write(_written(error, self.server_state.default_headers, on_v1=on_v1))
        for cycle in waiting:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


def _headers(content: bytes, *, on_v1: bool = False) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json" if on_v1 else b"application/problem+json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        *HARDENING,
    ]


def _written(error: SAEError, default: list[tuple[bytes, bytes]], *, on_v1: bool) -> bytes:
    content = msgspec.json.encode(openai_view(error) if on_v1 else problem_view(error))
    status = HTTPStatus(error.status)
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
    lines += [name + b": " + value for name, value in (*default, *_headers(content, on_v1=on_v1))]
    return b"\r\n".join([*lines, b"", content])


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    """In place of the application, on a connection beyond the bound."""
    del receive
    error = NotReadyError("too many connections", retry_after=1)
    on_v1 = scope["path"].startswith("/v1/")
    content = msgspec.json.encode(openai_view(error) if on_v1 else problem_view(error))
    headers = [*_headers(content, on_v1=on_v1), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})
