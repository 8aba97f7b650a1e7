"""Timeouts for slow clients, and a limit on open connections.

uvicorn waits forever for the rest of a request, and for a client to read an answer. `TimeoutProtocol` is its HTTP/1.1
protocol with a clock. It looks at its connection a few times per limit and asks what the peer owes it:

    the header of a request  in `request_seconds`, at most `MAX_HEAD` bytes of it            408, 400
    the body                 in `request_seconds` and a second for every `BODY_RATE` bytes   408
    the rest of a body that was answered already (413, 401)   in `LINGER_SECONDS`            closed
    room for an answer       some of it in `stalled_seconds`, `READ_RATE` bytes a second     closed
    anything, when idle      in `request_seconds`                                            closed

A few pipelined requests wait for the one before them. Bytes after those are not parsed, and soon no longer read.
Trailers are dropped; at most `MAX_FRAMING` bytes of them are read.

Beyond `connections` every request gets 503, and beyond `spare` more nothing is read. Answers from here are problems,
like all others.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ...errors import BadRequestError, RequestTimeoutError, SAEError
from ..guard.attempts import plain_address
from .rejections import too_many, written

MAX_HEAD = 64 * 1024
MAX_HEADERS = 128
MAX_FRAMING = 8 * 1024
"""Bytes of a body's framing, trailers among it, on end without a byte of the body."""
MAX_WAITING = 8
"""Pipelined requests after the one being answered; a few more if they come in one piece."""
PIECE = 256
"""Bytes that the parser is given at once: it cannot be stopped within, and a request may have 18."""
TAKEN = 16 * 1024
"""Bytes that are taken from the system at once, and held while requests wait."""
BODY_RATE = 16 * 1024
READ_RATE = 4 * 1024
LINGER_SECONDS = 5.0
"""An answer that comes before the request has been sent is lost if the connection is closed at once."""
SPARE = 64
"""Connections beyond the bound that are answered still."""
LOOKS = 4
"""Looks at a connection within its shortest limit."""


class ConnectionLimits(NamedTuple):
    connections: int = 4096
    spare: int = SPARE
    request_seconds: float = 20.0
    stalled_seconds: float = 20.0


def protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """What uvicorn takes as `http`: it only ever calls it."""
    return partial(TimeoutProtocol, limits=limits, room=memoryview(bytearray(TAKEN)))  # type: ignore[return-value]


class _Flow(FlowControl):
    """Reading goes on when the protocol has no more to do with what was read."""

    def __init__(self, transport: asyncio.Transport, resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._resume = resume

    def resume_reading(self) -> None:
        self._resume()


class TimeoutProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """Relies on these parts of uvicorn's protocol, which a test keeps an eye on: `cycle` is the newest request of the
    connection, `pipeline` those that wait, newest first, `_start_asgi_task` begins with one of them,
    `flow.write_paused`, `flow.read_paused`, `app` is what a new request is handed to, a cycle that is `disconnected`
    neither waits nor sends, `send_400_response`."""

    def __init__(self, *args: Any, limits: ConnectionLimits, room: memoryview, **given: Any) -> None:
        """`room`: where bytes arrive, for all connections of a loop: they are taken from there at once."""
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
        self._framing_bytes = 0
        self._idle_since: float | None = None
        self._owed: tuple[float, int] | None = None
        """Since when the peer takes what we have for it, and how much there was."""

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
        # Of a pipeline uvicorn knows only the newest request.
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
        """Give the parser what has come, until that is enough for now."""
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
        """How many of the bytes were taken."""
        self._unset_keepalive_if_required()
        body_bytes, taken = self._body_bytes, len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing else is spoken here: what follows is the next request.
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
        """uvicorn has room for more. Read on later: it has not begun with the next request yet."""
        if not self.flow.read_paused or len(self.pipeline) > MAX_WAITING or self.transport.is_closing():
            return
        self.flow.read_paused = False
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
        # What is raised here, the parser makes a 400 of.
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        codings = [value.lower().strip() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or self.parser.get_http_version() == "1.0"):
            raise ValueError("this transfer coding is not supported")
        lengths = [value for name, value in self.headers if name == b"content-length" and value.strip() != b"0"]
        if (codings or lengths) and self.parser.should_upgrade():
            # The parser takes the body of such a request for another protocol's, we would for the next request.
            raise ValueError("a body after an upgrade")
        super().on_headers_complete()
        self._head_since = self._owed = None
        self._head_bytes = 0
        self._body_since, self._body_bytes = self.loop.time(), 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._handled = cycle
        super()._start_asgi_task(cycle, app)

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
        elif not self.transport.is_closing() and not self.flow.read_paused and not self._unread:
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
                self._end(RequestTimeoutError("the header of the request did not arrive in time"))
        elif self._body_since is not None:
            if self.cycle.response_complete:
                if now - self._body_since > min(limit, LINGER_SECONDS):
                    self.transport.close()
            elif now - self._body_since > limit + self._body_bytes / BODY_RATE:
                self._end(RequestTimeoutError("the body of the request did not arrive in time"))
        elif self._idle_since is not None and not self._unanswered() and now - self._idle_since > limit:
            self.transport.close()

    def _unanswered(self) -> list[RequestResponseCycle]:
        """Oldest first."""
        handled = self._handled
        first = [] if handled is None or handled.response_complete else [handled]
        return [*first, *(cycle for cycle, _ in reversed(self.pipeline))]

    # — answers from here —

    def send_400_response(self, msg: str) -> None:
        """uvicorn's hook for input that is not HTTP."""
        self._end(BadRequestError("the request is not valid HTTP"))
        del msg

    def _end(self, error: SAEError) -> None:
        """Close, with an answer where it would be taken for this request's: no other is owed, and none has begun."""
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
