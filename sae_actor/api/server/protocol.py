"""Timeouts for slow clients, and a limit on open connections.

uvicorn waits forever for the rest of a request, and for a client to read an answer. `TimeoutProtocol` is its HTTP/1.1
protocol with timeouts. A few times per limit it checks what its connection is waiting for:

    the header of a request  in `request_seconds`, at most `MAX_HEAD` bytes of it            408, 400
    the body                 in `request_seconds` and a second for every `BODY_RATE` bytes   408
    the body of an upload    some of it in `request_seconds`                                 408
    the rest of a body that was answered already (413, 401)   in `LINGER_SECONDS`            closed
    room for an answer       some of it in `stalled_seconds`, `READ_RATE` bytes a second     closed
    anything, when idle      in `request_seconds`                                            closed

A few pipelined requests wait for the one before them. Bytes after those are not parsed, and soon no longer read.
Trailers are dropped; at most `MAX_FRAMING` bytes of them are read.

Connections over the limit `connections` get 503 for each request. Those more than `spare` over it are closed unread.
Answers from here are problems, like all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ...errors import BadRequestError, RequestTimeoutError, SAEError
from ..guard.attempts import plain_address
from ..operations import is_upload
from .rejections import too_many, written
from .transports import reset, unread

MAX_HEAD = 64 * 1024
MAX_HEADERS = 128
MAX_FRAMING = 8 * 1024
"""The most bytes of a body's framing, trailers included, in a row without a byte of the body."""
MAX_WAITING = 8
"""How many pipelined requests may wait for the one being answered; a few more if they come in one piece."""
PIECE = 256
"""How many bytes the parser is given at a time. It cannot be stopped within them, and a request may have just 18."""
TAKEN = 16 * 1024
"""How many bytes are read from the system at a time, and held while requests wait."""
BODY_RATE = 16 * 1024
READ_RATE = 4 * 1024
LINGER_SECONDS = 5.0
"""An answer that comes before the request has been sent is lost if the connection is closed at once."""
SPARE = 64
"""How many connections over the limit still get an answer."""
LOOKS = 4
"""How often a connection is checked within its shortest limit."""


class ConnectionLimits(NamedTuple):
    connections: int = 4096
    spare: int = SPARE
    request_seconds: float = 20.0
    stalled_seconds: float = 20.0


def protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The value for uvicorn's option `http`, which uvicorn only calls."""
    return partial(TimeoutProtocol, limits=limits, room=memoryview(bytearray(TAKEN)))  # type: ignore[return-value]


class _Flow(FlowControl):
    """Resumes reading through the protocol, which may still hold bytes that it has not parsed."""

    def __init__(self, transport: asyncio.Transport, resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._resume = resume

    def resume_reading(self) -> None:
        self._resume()


class TimeoutProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's HTTP/1.1 protocol, with timeouts.

    It relies on these parts of uvicorn's protocol, which a test checks: `cycle`, the newest request of the connection;
    `pipeline`, the waiting requests, newest first; `_start_asgi_task`, which starts one of them; `flow.write_paused`
    and `flow.read_paused`; `app`, which gets new requests; `send_400_response`. A cycle that is `disconnected` neither
    waits nor sends."""

    def __init__(self, *args: Any, limits: ConnectionLimits, room: memoryview, **given: Any) -> None:
        """`room`: the buffer for arriving bytes. All connections of a loop share it, since each copies them at once."""
        super().__init__(*args, **given)
        self._limits = limits
        self._room = room
        self._unread = b""
        self._reading: asyncio.Handle | None = None
        self._leaving = False
        self._looking: asyncio.TimerHandle | None = None
        self._handled: RequestResponseCycle | None = None
        """The request that the application was last given."""
        self._head_since: float | None = None
        self._head_bytes = 0
        self._body_since: float | None = None
        self._body_bytes = 0
        self._uploaded_at: float | None = None
        """Of an upload, when its last bytes came."""
        self._framing_bytes = 0
        self._idle_since: float | None = None
        self._owed: tuple[float, int] | None = None
        """When the peer began to read the bytes that are left for it, and how many there were."""

    # — what happens on the connection —

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = _Flow(transport, self._resume_reading)
        if self.client is not None:
            self.client = (plain_address(self.client[0]), self.client[1])
        excess = len(self.connections) - self._limits.connections
        if excess > self._limits.spare:
            transport.abort()
            return
        if excess > 0:
            self.app = too_many
        self._idle_since = self.loop.time()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._looking, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        # uvicorn disconnects only the newest request of a pipeline.
        self._disconnect(self._unanswered())
        self.pipeline.clear()
        self._unread = b""

    def shutdown(self) -> None:
        """The request being answered is the last one: those after it have not begun."""
        self._leaving = True
        self.pipeline.clear()
        if self._handled is None or self._handled.response_complete:
            self.transport.close()
        else:
            self._handled.keep_alive = False

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._room[:nbytes]))

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._read_on()

    def _read_on(self) -> None:
        """Give the parser the bytes that have arrived, until reading has to pause."""
        self._reading = None
        at = 0
        while at < len(self._unread) and self._may_read():
            at += self._parse(self._unread[at : at + PIECE])
        self._unread = self._unread[at:]
        if self._unread:
            self.transport.pause_reading()
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def _may_read(self) -> bool:
        if self._leaving and (self._body_since is None or self.cycle is not self._handled):
            return False
        return not self.transport.is_closing() and not self.flow.read_paused

    def _parse(self, piece: bytes) -> int:
        """Parse a piece; how many of its bytes were parsed."""
        self._unset_keepalive_if_required()
        body_bytes, taken = self._body_bytes, len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            # No upgrade is supported: the following bytes are the next request.
            taken = max(1, upgrade.args[0])
        except httptools.HttpParserError:
            self.send_400_response("")
            return taken
        self._framing_bytes += taken
        if self._body_since is None or self._body_bytes != body_bytes:
            self._framing_bytes = 0
        if self._head_since is not None:
            self._head_bytes += taken
        if self._head_bytes >= MAX_HEAD:
            self._end(BadRequestError("the header of the request is too large"))
        elif self._framing_bytes > MAX_FRAMING:
            self._end(BadRequestError("chunk extensions or trailers are too large"))
        return taken

    def _resume_reading(self) -> None:
        """uvicorn can take more. Read on later: it has not started the next request yet."""
        if not self.flow.read_paused or len(self.pipeline) > MAX_WAITING or self.transport.is_closing():
            return
        self.flow.read_paused = False
        if self._uploaded_at is not None:
            self._uploaded_at = self.loop.time()
        if not self._unread:
            self.transport.resume_reading()
        elif self._reading is None:
            self._reading = self.loop.call_soon(self._read_on)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_since, self._head_bytes = self.loop.time(), 0
        self._idle_since = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_since is None:
            return  # a trailer: it comes after the checks, so it must not carry anything that they check
        super().on_header(name, value)
        # The parser turns an error raised here into a 400.
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        codings = [value.lower().strip() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or self.parser.get_http_version() == "1.0"):
            raise ValueError("this transfer coding is not supported")
        lengths = [value for name, value in self.headers if name == b"content-length" and value.strip() != b"0"]
        if (codings or lengths) and self.parser.should_upgrade():
            # The parser would take the body for another protocol's bytes, and we would for the next request.
            raise ValueError("a body after an upgrade")
        super().on_headers_complete()
        self._head_since = self._owed = None
        self._head_bytes = 0
        self._body_since, self._body_bytes = self.loop.time(), 0
        self._uploaded_at = self._body_since if is_upload(self.scope["method"], self.scope["path"]) else None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._handled = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes += len(body)
        if self._uploaded_at is not None:
            self._uploaded_at = self.loop.time()

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
        # The peer has read: bytes written from now on are new.
        self._owed = None

    # — what is owed —

    def _look_later(self) -> None:
        shortest = min(self._limits.request_seconds, self._limits.stalled_seconds)
        self._looking = self.loop.call_later(shortest / LOOKS, self._look)

    def _look(self) -> None:
        self._look_later()
        now = self.loop.time()
        if self._is_stalled(now):
            reset(self.transport)
        elif not self.transport.is_closing() and not self.flow.read_paused and not self._unread:
            self._look_at_request(now)

    def _is_stalled(self, now: float) -> bool:
        """Whether the peer reads too slowly. It is only checked while no more bytes are written."""
        ended = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        left = unread(self.transport) if ended or self.flow.write_paused else 0
        if left == 0 or (self._owed is not None and left > self._owed[1]):
            self._owed = None
        if left == 0:
            return False
        if self._owed is None:
            self._owed = (now, left)
        since, at_first = self._owed
        return now - since > self._limits.stalled_seconds + (at_first - left) / READ_RATE

    def _look_at_request(self, now: float) -> None:
        limit = self._limits.request_seconds
        if self._head_since is not None:
            if now - self._head_since > limit:
                self._end(RequestTimeoutError("the header of the request did not arrive in time"))
        elif self._body_since is not None:
            if self.cycle.response_complete:
                if now - self._body_since > min(limit, LINGER_SECONDS):
                    self.transport.close()
            elif self._is_late(now):
                self._end(RequestTimeoutError("the body of the request did not arrive in time"))
        elif self._idle_since is not None and not self._unanswered() and now - self._idle_since > limit:
            self.transport.close()

    def _is_late(self, now: float) -> bool:
        """Whether the body does not come forward. One that goes to disk may take its time, as long as it comes."""
        limit = self._limits.request_seconds
        if self._uploaded_at is not None:
            return now - self._uploaded_at > limit
        return self._body_since is not None and now - self._body_since > limit + self._body_bytes / BODY_RATE

    def _unanswered(self) -> list[RequestResponseCycle]:
        """The unanswered requests, oldest first."""
        handled = self._handled
        first = [] if handled is None or handled.response_complete else [handled]
        return [*first, *(cycle for cycle, _ in reversed(self.pipeline))]

    # — answers from here —

    def send_400_response(self, msg: str) -> None:
        """uvicorn's hook for input that is not HTTP."""
        self._end(BadRequestError("the request is not valid HTTP"))
        del msg

    def _end(self, error: SAEError) -> None:
        """Close the connection, with an answer if the client would take it for this request's: no other answer is due,
        and none has begun."""
        waiting = self._unanswered()
        arriving = self.cycle if self._body_since is not None else None
        is_answered = arriving is not None and arriving.response_complete
        if not is_answered and all(each is arriving and not each.response_started for each in waiting):
            path = str(waiting[-1].scope["path"]) if waiting else ""
            self.transport.write(written(error, self.server_state.default_headers, path))
        self._disconnect(waiting)
        self.transport.close()

    def _disconnect(self, cycles: list[RequestResponseCycle]) -> None:
        for cycle in cycles:
            cycle.disconnected = True
            cycle.message_event.set()
