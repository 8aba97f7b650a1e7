"""Many requests on one connection, and bodies with much around them: a real process stays quick and small."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Process
from .network import TOKEN, connected, resident, started, to_the_end, whole

HOST = b"Host: 127.0.0.1\r\n"
OWN = b"%sAuthorization: Bearer %s\r\n" % (HOST, TOKEN.encode())
SMALLEST = b"GET / HTTP/1.1\r\nHost:\r\n\r\n"
COMMAND = b'{"type":"UnloadModel"}'
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with started(tmp_path_factory.mktemp("pipelines") / "data") as process:
        yield process
        whole(process)


def answered(service: Process, raw: bytes) -> bytes:
    """What comes until the service closes."""
    with connected(service) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
        return to_the_end(connection)


def seconds_of_health(service: Process) -> float:
    began = time.monotonic()
    with connected(service) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    return time.monotonic() - began


def test_requests_without_end_on_connections_that_nobody_reads(tmp_path: Path) -> None:
    """No token is needed for it: others are answered all the while, memory stays, and a stop is a stop."""
    with started(tmp_path / "data", SAE_ACTOR_SERVER_STALLED_SECONDS="30") as service, contextlib.ExitStack() as opened:
        seconds_of_health(service)
        before = resident(service)
        for _ in range(20):
            flood = opened.enter_context(connected(service))
            flood.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                flood.send(SMALLEST * 12_000)
        told, until_then = [], time.monotonic() + 2
        while time.monotonic() < until_then:
            told.append(seconds_of_health(service))
            time.sleep(0.01)
        assert max(told) < 1, told
        assert resident(service) - before < 32 * MIB
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert time.monotonic() - began < 5


def test_a_long_pipeline_is_answered_in_order(service: Process) -> None:
    """Bodies of both framings, upgrades that nobody makes, trailers: each request ends where it ends."""
    kind = b"Content-Type: application/json\r\n"
    some = [
        (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
        (b"GET /api/log HTTP/1.1\r\n" + HOST + b"\r\n", b"401"),
        (b"POST /api/commands HTTP/1.1\r\n" + OWN + kind + b"Content-Length: 22\r\n\r\n" + COMMAND, b"409"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"200"),
        (b"POST /api/commands HTTP/1.1\r\n" + OWN + kind + b"Transfer-Encoding: chunked\r\n\r\n16\r\n" + COMMAND
         + b"\r\n0\r\nX: y\r\nAuthorization: z\r\n\r\n", b"409"),
        (b"POST /api/commands HTTP/1.1\r\n" + OWN + kind + b"Content-Length: 2\r\n\r\n{}", b"400"),
        (b"GET /nothing HTTP/1.1\r\n" + OWN + b"\r\n", b"404"),
    ]  # fmt: skip
    last = b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    raw = b"".join(request for request, _ in some) * 60 + last
    found = re.findall(rb"HTTP/1\.1 (\d+) ", answered(service, raw))
    assert found == [status for _, status in some] * 60 + [b"200"]


# — what stands around a body —


def chunked(path: bytes, headers: bytes, trailers: bytes, body: bytes = COMMAND) -> bytes:
    head = b"POST %s HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" % (path, headers)
    return head + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)


def test_trailers_are_no_headers(service: Process) -> None:
    """They come behind the checks: none of them lets anybody in, or says what the head did not."""
    kind, own = b"Content-Type: application/json\r\n", OWN.removeprefix(HOST)
    for headers, trailers, status in (
        (HOST + kind, own, b"401"), (OWN, kind, b"415"), (HOST, own + kind, b"401"), (own + kind, HOST, b"400"),
        (OWN + kind, b"Idempotency-Key: a b\r\nOrigin: http://evil.example\r\nIf-Match: x\r\n", b"409"),
    ):  # fmt: skip
        assert answered(service, chunked(b"/api/commands", headers, trailers))[9:12] == status, trailers
    asked = b"GET /api/log HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n%s\r\n" % (
        HOST,
        own,
    )
    assert answered(service, asked)[9:12] == b"401"
    # In pieces, and behind them a request of its own.
    with connected(service) as connection:
        raw = chunked(b"/api/commands", HOST + kind, own + b"X: y\r\n").replace(b"Connection: close\r\n", b"")
        for at in range(0, len(raw), 40):
            connection.sendall(raw[at : at + 40])
            time.sleep(0.002)
        connection.sendall(b"GET /api/log HTTP/1.1\r\n%sConnection: close\r\n\r\n" % HOST)
        assert re.findall(rb"HTTP/1\.1 (\d+) ", to_the_end(connection)) == [b"401", b"401"]


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"0\r\nX: ", b"a"), (b"0\r\n", b"a: b\r\n"), (b"1;", b"a"), (b"1;a=", b"b"), (b"0;", b"a")],
)
def test_framing_without_end(service: Process, start: bytes, more: bytes) -> None:
    """Before anybody has said who they are: a value, lines or an extension of a chunk that never end."""
    before = resident(service)
    body = b"1\r\n \r\n" if start.startswith(b"0") else b""
    with connected(service) as connection:
        connection.sendall(
            b"POST /login HTTP/1.1\r\n%sContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" % HOST
        )
        connection.sendall(body + start)
        with contextlib.suppress(ConnectionError):
            for _ in range(32):
                connection.sendall(more * (MIB // len(more)))
        assert b"HTTP/1.1 2" not in to_the_end(connection)
    assert resident(service) - before < 4 * MIB
    assert seconds_of_health(service) < 1


def test_a_body_behind_an_upgrade_is_no_request(service: Process) -> None:
    """Whoever takes it for one lets the body of a request say what the next request is."""
    hidden = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    head = b"POST /api/commands HTTP/1.1\r\n%sContent-Type: application/json\r\n" % OWN
    for upgrade in (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n"):
        for framing in (b"Content-Length: %d\r\n\r\n" % len(hidden), b"Transfer-Encoding: chunked\r\n\r\n2f\r\n"):
            answers = answered(service, head + upgrade + framing + hidden)
            assert re.findall(rb"HTTP/1\.1 (\d+) ", answers) == [b"400"], framing
    none = head + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\n%sConnection: close\r\n\r\n" % HOST
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answered(service, none + last)) == [b"400", b"200"]


def test_codings_that_are_not_undone(service: Process) -> None:
    head = b"POST /api/commands HTTP/1.1\r\n%sContent-Type: application/json\r\nConnection: close\r\n" % OWN
    for coding in (b"gzip, chunked", b"identity", b"chunked, chunked", b"x", b"gzip\r\nTransfer-Encoding: chunked",
                   b"chunked\r\nTransfer-Encoding: chunked"):  # fmt: skip
        raw = head + b"Transfer-Encoding: " + coding + b"\r\n\r\n16\r\n" + COMMAND + b"\r\n0\r\n\r\n"
        assert answered(service, raw)[9:12] == b"400", coding
    old = head.replace(b"HTTP/1.1", b"HTTP/1.0")
    raw = old + b"Transfer-Encoding: chunked\r\n\r\n16\r\n" + COMMAND + b"\r\n0\r\n\r\n"
    assert answered(service, raw)[9:12] == b"400"
    raw = head + b"Transfer-Encoding: Chunked\r\n\r\n16\r\n" + COMMAND + b"\r\n0\r\n\r\n"
    assert answered(service, raw)[9:12] == b"409"
