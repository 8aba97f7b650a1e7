"""Reads from a real service process by readers that mean it no good."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Process
from .test_kill import SCRIPT

HOST = b"Host: 127.0.0.1\r\n"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with Process(tmp_path / "data") as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        yield process


def connected(process: Process, receive_bytes: int | None = None) -> socket.socket:
    raw = socket.socket()
    if receive_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.settimeout(30)
    raw.connect(("127.0.0.1", int(process.url.rpartition(":")[2])))
    return raw


def rest(raw: socket.socket) -> bytes:
    found = []
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(1 << 16):
            found.append(part)
    return b"".join(found)


@pytest.mark.parametrize("path", [b"/api/events?types=checkpoint", b"/api/events"])
def test_a_stream_whose_request_has_a_body_of_many_pieces(process: Process, path: bytes) -> None:
    with connected(process) as raw:
        raw.sendall(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        for _ in range(1500):
            raw.sendall(b"1\r\nx\r\n")
            time.sleep(0.0005)
        raw.sendall(b"0\r\n\r\n")
        assert process.client.get("/health").status_code == 200
        process.signal(signal.SIGTERM)
        assert rest(raw).endswith(b'event: bye\ndata: {"why":"the service is stopping"}\n\n\r\n0\r\n\r\n')
    assert process.wait(10) == 0
    assert process.stderr.read_text() == ""
