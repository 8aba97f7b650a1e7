"""Load over raw sockets: so many keep-alive connections, each sending its next request when it has its answer.

times = load("http://127.0.0.1:8000", request("/api/commands", b"{}"), connections=16, count=1000)
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    sent: float = 0.0
    answer: bytes = b""


def request(path: str, body: bytes = b"", method: str = "POST") -> bytes:
    """The bytes of one request with a JSON body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connected(url: str, *, receive_buffer: int | None = None) -> socket.socket:
    """A socket to the service; with a small receive buffer for a reader who does not keep up."""
    where = urlsplit(url)
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.connect((where.hostname, where.port))
    return made


def load(
    url: str, raw: bytes | Callable[[int], bytes], *, connections: int, count: int, good: tuple[int, ...] = (200, 202)
) -> list[float]:
    """Send `count` requests over so many connections; the seconds that each answer took.

    `raw` is the request, or makes the n-th one. An answer with another status than the good ones is an error.
    """
    make = raw if callable(raw) else lambda _: raw
    times: list[float] = []
    sent = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(min(connections, count)):
            each = _Connection(connected(url))
            selector.register(each.socket, selectors.EVENT_READ, each)
            _send(each, make(sent))
            sent += 1
        while len(times) < count:
            for key, _ in selector.select(30):
                each = key.data
                part = each.socket.recv(65536)
                assert part, "the service hung up"
                each.answer += part
                status = _complete(each.answer)
                if status is None:
                    continue
                assert status in good, each.answer.decode()
                times.append(time.perf_counter() - each.sent)
                each.answer = b""
                if sent < count:
                    _send(each, make(sent))
                    sent += 1
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return times


def _send(each: _Connection, raw: bytes) -> None:
    each.sent = time.perf_counter()
    each.socket.sendall(raw)


def _complete(answer: bytes) -> int | None:
    """The status of an answer that is there with its whole body, else None."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return None
    at = head.lower().index(b"content-length:") + 15
    length = int(head[at:].split(b"\r\n", 1)[0])
    return int(head[9:12]) if len(body) >= length else None


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
