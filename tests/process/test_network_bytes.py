"""Bytes that are nearly HTTP, thrown at a real process: it answers or closes, says nothing of it, and keeps nothing.

The default run throws for two seconds; `-m fuzz` for two minutes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .harness import Process, until
from .network import ENVIRONMENT, TOKEN, whole

COMMAND = b'{"type":"UnloadModel"}'
LINES = [
    b"GET /health HTTP/1.1\r\n", b"POST /api/commands HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\n",
    b"GET /api/events HTTP/1.1\r\n", b"DELETE /api/saes/x HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"GET http://127.0.0.1/api/log HTTP/1.0\r\n",
    b"PUT /api/saes/x/steering HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n", b"Host: \r\n", b"Host: 127.0.0.1:x\r\n",
    b"Authorization: Bearer x\r\n",
    b"Content-Type: application/json\r\n", b"Content-Length: %d\r\n" % len(COMMAND), b"Content-Length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Last-Event-ID: \xff\r\n", b"Prefer: wait=1\r\n", b"Idempotency-Key: a\r\n", b"\r\n",
    b"5\r\n12345\r\n", b"0\r\n\r\n", b"fffffffffffffff\r\n", COMMAND, b"\n", b"\0", b": ", b" ", b"%00",
    b"\x16\x03\x01",
]  # fmt: skip
FIRST = LINES.index(b"Host: 127.0.0.1\r\n")
"""Request lines stand before it, headers and pieces of bodies behind."""
OWN = b"Host: 127.0.0.1\r\nAuthorization: Bearer %s\r\n" % TOKEN.encode()
NEARLY_RIGHT = st.tuples(
    st.sampled_from(LINES[:FIRST]),
    st.lists(st.sampled_from(LINES[FIRST:]), max_size=3),
    st.sampled_from([b"", COMMAND]),
).map(lambda parts: parts[0] + OWN + b"".join(parts[1]) + b"\r\n" + parts[2])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A request with a few bytes changed, put in or taken out."""
    raw = bytearray(draw(NEARLY_RIGHT | st.lists(st.sampled_from(LINES), max_size=12).map(b"".join)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return bytes(raw)


def throw(process: Process, seconds: float) -> Counter[bytes]:
    """First bytes of the answers."""
    port = int(process.url.rpartition(":")[2])
    told: Counter[bytes] = Counter()
    until_then = time.monotonic() + seconds

    @given(raw=damaged() | st.binary(max_size=300))
    @settings(max_examples=200, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def once(raw: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.settimeout(0.03)
            with contextlib.suppress(OSError):  # it may wait for more, or be gone already
                connection.sendall(raw)
                told[connection.recv(12)] += 1

    while time.monotonic() < until_then:
        once()
    return told


def is_unhurt(tmp_path: Path, seconds: float) -> Counter[bytes]:
    quick = {"SAE_ACTOR_SERVER_REQUEST_SECONDS": "0.5", "SAE_ACTOR_SERVER_STALLED_SECONDS": "0.5"}
    with Process(tmp_path / "data", environment={**ENVIRONMENT, **quick}) as process:
        process.client.headers["authorization"] = f"Bearer {TOKEN}"
        throw(process, seconds / 4)
        own = psutil.Process(process.pid)
        until(lambda: len(own.net_connections()) <= 2)
        files, resident = own.num_fds(), own.memory_info().rss
        told = throw(process, seconds)
        until(lambda: len(own.net_connections()) <= 2)
        assert own.num_fds() <= files
        assert own.memory_info().rss < 1.2 * resident
        whole(process)
        assert process.stderr.read_text() == ""
    assert not any(answer.startswith(b"HTTP/1.1 5") for answer in told), told
    assert told[b"HTTP/1.1 400"] > 0
    assert told[b"HTTP/1.1 200"] > 0
    return told


def test_a_moment_of_bytes(tmp_path: Path) -> None:
    is_unhurt(tmp_path, 2)


@pytest.mark.fuzz
@pytest.mark.timeout(300)
def test_two_minutes_of_bytes(tmp_path: Path) -> None:
    print(is_unhurt(tmp_path, 120))
