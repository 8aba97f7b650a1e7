"""Connections that do not come forward, and too many of them: on real sockets, with limits of half a second."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sae_actor.api.guard.headers import HARDENING
from sae_actor.api.server.protocol import MAX_HEAD, MAX_HEADERS, ConnectionLimits

from ..conftest import Running, serving
from ..raw import Answer, parsed

pytestmark = pytest.mark.anyio

LIMIT = 0.5
IN_TIME = 1.5 * LIMIT + 0.5
"""A look at the connection may come a quarter late, and this machine may be busy."""
CLOSED = 7
"""TCP_CLOSE, the state of a connection that was reset."""
QUICK = ConnectionLimits(request_seconds=LIMIT, stalled_seconds=LIMIT)


@pytest.fixture
async def quick() -> AsyncIterator[Running]:
    async with serving(limits=QUICK) as running:
        yield running


class Connection:
    """A socket that sends what it is told, when it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.began = time.monotonic()

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def dribble(self, raw: bytes, every: float = LIMIT / 10) -> None:
        """A byte at a time, until there are no more or nobody listens."""
        for byte in raw:
            if self.reader.at_eof() or self.writer.is_closing():
                return
            self.send(bytes([byte]))
            await asyncio.sleep(every)

    async def rest(self) -> tuple[bytes, float]:
        """What comes until the service closes, and when that was, in seconds after the beginning."""
        found = b""
        try:
            while more := await asyncio.wait_for(self.reader.read(1 << 16), 10):
                found += more
        except ConnectionError:
            pass
        return found, time.monotonic() - self.began

    async def answer(self) -> Answer:
        """One answer with a length."""
        head = parsed(await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10))
        return head._replace(body=await self.reader.readexactly(int(head.header("content-length") or 0)))


@asynccontextmanager
async def connection(service: Running, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 12 if receive_buffer else 1 << 16)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


def is_problem(raw: bytes | Answer, status: int, code: str) -> None:
    answer = parsed(raw) if isinstance(raw, bytes) else raw
    problem = msgspec.json.decode(answer.body)
    assert (answer.status, problem["status"], problem["code"]) == (status, status, code)
    assert answer.header("content-type") == "application/problem+json"
    assert answer.header("connection") == "close"
    for name, value in HARDENING:
        assert answer.header(name.decode()) == value.decode()


HEAD = b"POST /api/commands HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


# — requests that do not come —


async def test_a_connection_that_says_nothing(quick: Running) -> None:
    async with connection(quick) as silent:
        found, seconds = await silent.rest()
    assert found == b""
    assert LIMIT / 2 < seconds < IN_TIME


@pytest.mark.parametrize("behind", [b"", GET])
async def test_a_head_that_comes_byte_by_byte(quick: Running, behind: bytes) -> None:
    """First on the connection, and behind an answered request."""
    async with connection(quick) as slow:
        if behind:
            slow.send(behind)
            assert (await slow.answer()).status == 200
        dribbling = asyncio.create_task(slow.dribble(HEAD))
        found, seconds = await slow.rest()
        await dribbling
    is_problem(found, 408, "request_timeout")
    assert seconds < IN_TIME


async def test_a_kept_connection_on_which_nothing_but_line_breaks_come(quick: Running) -> None:
    async with connection(quick) as slow:
        slow.send(GET)
        assert (await slow.answer()).status == 200
        dribbling = asyncio.create_task(slow.dribble(b"\r\n" * 40))
        _, seconds = await slow.rest()
        await dribbling
    assert seconds < IN_TIME


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nff\r\n"])
async def test_a_body_that_comes_byte_by_byte(quick: Running, framing: bytes) -> None:
    async with connection(quick) as slow:
        slow.send(HEAD + framing)
        dribbling = asyncio.create_task(slow.dribble(b" " * 200))
        found, seconds = await slow.rest()
        await dribbling
    is_problem(found, 408, "request_timeout")
    assert seconds < IN_TIME
    assert len(await quick.events()) == 1


async def test_a_body_that_comes_slowly_but_steadily_is_waited_for(quick: Running) -> None:
    """16 KiB buy a second."""
    body = b'{"type":"UnloadModel"' + b" " * (64 * 1024) + b"}"
    async with connection(quick) as steady:
        steady.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        pieces = [body[at : at + 8192] for at in range(0, len(body), 8192)]
        for piece in pieces:
            steady.send(piece)
            await asyncio.sleep(3 * LIMIT / len(pieces))
        answer = await steady.answer()
    assert answer.status in (202, 409)


UPLOAD = b"PUT /api/texts HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\n"


async def test_an_upload_has_its_time_from_the_last_byte_that_came(quick: Running) -> None:
    async with connection(quick) as steady:
        steady.send(UPLOAD)
        await steady.dribble(b"one text and another", every=LIMIT / 6)
        assert time.monotonic() - steady.began > 3 * LIMIT
        answer = await steady.answer()
    assert (answer.status, msgspec.json.decode(answer.body)["count"]) == (200, 1)


async def test_an_upload_that_stops(quick: Running) -> None:
    async with connection(quick) as stopped:
        stopped.send(UPLOAD)
        await stopped.dribble(b"one text and", every=LIMIT / 6)
        last = time.monotonic()
        found, _ = await stopped.rest()
        assert time.monotonic() - last < IN_TIME
    is_problem(found, 408, "request_timeout")
    assert list(quick.context.runs.folder.incoming.iterdir()) == [], "what had come is removed"


async def test_a_body_without_an_end(quick: Running) -> None:
    """413 while it is still coming, and then the end of the connection."""
    async with connection(quick) as endless:
        endless.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")

        async def more() -> None:
            while not endless.reader.at_eof():
                endless.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
                await endless.writer.drain()

        sending = asyncio.create_task(more())
        head = parsed(await asyncio.wait_for(endless.reader.readuntil(b"\r\n\r\n"), 10))
        began = time.monotonic()
        await endless.rest()
        seconds = time.monotonic() - began
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert head.status == 413
    assert seconds < IN_TIME


async def test_the_body_of_a_request_that_was_refused_at_once() -> None:
    """Who is not let in may finish its sentence, but not for long."""
    async with serving(tokens=("secret",), limits=QUICK) as service, connection(service) as refused:
        refused.send(HEAD + b"Content-Length: 1000\r\n\r\n")
        assert (await refused.answer()).status == 401
        dribbling = asyncio.create_task(refused.dribble(b" " * 200))
        _, seconds = await refused.rest()
        await dribbling
        assert seconds < IN_TIME
        async with connection(service) as polite:
            polite.send(HEAD + b"Content-Length: 10\r\n\r\n")
            assert (await polite.answer()).status == 401
            polite.send(b" " * 10 + GET)
            assert (await polite.answer()).status == 200


# — heads that are no heads —


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100,
        b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"b" * MAX_HEAD + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * MAX_HEADERS + b"\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_request_is_a_problem_all_the_same(quick: Running, raw: bytes) -> None:
    async with connection(quick) as strange:
        strange.send(raw)
        found, _ = await strange.rest()
    is_problem(found, 400, "bad_request")


@pytest.mark.parametrize("start", [b"GET /", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nA: "])
async def test_a_head_without_an_end(quick: Running, start: bytes) -> None:
    async with connection(quick) as endless:
        endless.send(start)
        for _ in range(20):
            endless.send(b"a" * 8192)
            await asyncio.sleep(0.005)
        found, seconds = await endless.rest()
    assert not found or parsed(found).status == 400
    assert seconds < IN_TIME


# — answers that are not read —


async def test_a_reader_that_stops(quick: Running) -> None:
    """Hundreds of answers are asked for and none is read: the service resets the connection."""
    asked = 300
    async with connection(quick, receive_buffer=4096) as stopped:
        stopped.send(b"GET /schema HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * asked)
        raw: socket.socket = stopped.writer.get_extra_info("socket")
        while raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != CLOSED:
            assert time.monotonic() - stopped.began < 30
            await asyncio.sleep(0.05)
        assert (await quick.client.get("/health")).status_code == 200
        found, _ = await stopped.rest()
    assert 0 < found.count(b"HTTP/1.1 200") < asked


async def test_a_slow_reader_gets_everything(quick: Running) -> None:
    """Also while the megabytes that the system has taken move and the service's own buffer does not."""
    asked = 18
    async with connection(quick, receive_buffer=4096) as slow:
        slow.send(b"GET /schema HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * (asked - 1))
        slow.send(b"GET /schema HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        found = b""
        while more := await asyncio.wait_for(slow.reader.read(32768), 10):
            found += more
            await asyncio.sleep(0.002)
        assert time.monotonic() - slow.began > 2 * LIMIT
    assert found.count(b"HTTP/1.1 200") == asked


# — more than one request, more than one connection —


async def test_requests_behind_one_another_are_answered_in_order(quick: Running) -> None:
    async with connection(quick) as pipelined:
        paths = ["/health", "/api/nothing", "/api/model", "/ready"]
        pipelined.send(b"".join(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode() for path in paths))
        assert [(await pipelined.answer()).status for _ in paths] == [200, 404, 200, 200]


async def test_a_part_of_a_head_behind_a_request_is_not_answered_in_its_place(quick: Running) -> None:
    """The stream before it is cut, and no 408 stands where the client would take it for a part of that."""
    async with connection(quick) as pipelined:
        pipelined.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea")
        found, seconds = await pipelined.rest()
    assert found.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" not in found  # a hash may hold the digits
    assert seconds < IN_TIME


async def test_a_stream_with_requests_behind_it_ends_with_its_reader(quick: Running) -> None:
    async with connection(quick) as pipelined:
        pipelined.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + GET + GET)
        await asyncio.wait_for(pipelined.reader.readuntil(b"\r\n\r\n"), 10)
        assert quick.actor.broadcast.readers == 1
    deadline = time.monotonic() + 5
    while quick.actor.broadcast.readers:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_quiet_stream_is_not_taken_for_an_idle_connection(quick: Running) -> None:
    async with connection(quick) as reader:
        reader.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await asyncio.wait_for(reader.reader.readuntil(b"event: ActorStarted"), 10)
        await asyncio.sleep(3 * LIMIT)
        await quick.command("LoadModel", model="tiny")
        await asyncio.wait_for(reader.reader.readuntil(b"event: ModelLoaded"), 10)


async def test_connections_beyond_the_bound() -> None:
    """A few more are told so, the rest is closed unheard; with room again all is well."""
    async with serving(limits=ConnectionLimits(connections=4, spare=2)) as service:
        opened = [await asyncio.open_connection(*service.url.removeprefix("http://").split(":")) for _ in range(4)]
        try:
            for _, writer in opened:
                writer.write(GET)
            for reader, _ in opened:
                assert parsed(await reader.readuntil(b"}")).status == 200
            async with connection(service) as fifth, connection(service), connection(service) as seventh:
                fifth.send(GET)
                answer = await fifth.answer()
                is_problem(answer, 503, "not_ready")
                assert answer.header("retry-after") == "1"
                seventh.send(GET)
                assert (await seventh.rest())[0] == b""
        finally:
            for _, writer in opened:
                writer.close()
        await asyncio.sleep(0.1)
        assert (await service.client.get("/health")).status_code == 200


def test_what_is_relied_on_in_uvicorn() -> None:
    """Private to uvicorn: a version that has none of it would let slow connections be."""
    for name in ("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete",
                 "on_response_complete", "send_400_response", "_unset_keepalive_if_required", "shutdown",
                 "_start_asgi_task"):  # fmt: skip
        assert callable(getattr(HttpToolsProtocol, name))
    made = set(HttpToolsProtocol.__init__.__code__.co_names)
    assert {"cycle", "flow", "app", "connections", "pipeline", "headers", "server_state"} <= made
    of_cycle = set(RequestResponseCycle.__init__.__code__.co_names)
    assert {"disconnected", "response_started", "response_complete", "message_event"} <= of_cycle
