"""What somebody unknown can do at the door of a real process, and what large bodies cost the others."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from .harness import Process
from .network import TOKEN, connected, head, resident, started, to_the_end, whole

MIB = 1024 * 1024
LOGIN = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Process]:
    with started(tmp_path / "data") as process:
        yield process
        whole(process)


def status(connection: socket.socket) -> int:
    """Of the answer that comes, whether or not the request has come in whole."""
    connection.settimeout(5)
    found = re.match(rb"HTTP/1\.1 (\d+) ", connection.recv(4096))
    assert found is not None
    return int(found[1])


def logged_in(service: Process, token: str, *lines: str, source: str = "127.0.0.1") -> int:
    body = json.dumps({"token": token}).encode()
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=15, source_address=(source, 0)) as connection:
        extra = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
        connection.sendall(LOGIN + extra + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return status(connection)


def seconds_of_health(service: Process, seconds: float) -> list[float]:
    """How long answers took, asked for over and over."""
    told, until_then = [], time.monotonic() + seconds
    while time.monotonic() < until_then:
        began = time.monotonic()
        with connected(service) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert status(connection) == 200
        told.append(time.monotonic() - began)
        time.sleep(0.01)
    return told


# — bodies —


def test_the_longest_token_is_a_login_and_what_is_longer_is_not_read(service: Process) -> None:
    escaped = b'{"token":"%s"}' % (b"\\u0078" * 1024)
    with connected(service) as connection:
        connection.sendall(LOGIN + b"Content-Length: %d\r\n\r\n" % len(escaped) + escaped)
        assert status(connection) == 401
    for length in (16 * 1024, 4 * MIB):
        with connected(service) as connection:
            connection.sendall(LOGIN + b"Content-Length: %d\r\n\r\n" % length)
            assert status(connection) == 413
    with connected(service) as connection:
        connection.sendall(LOGIN + b"Transfer-Encoding: chunked\r\n\r\n4000\r\n" + b" " * 0x4000 + b"\r\n")
        assert status(connection) == 413


def test_halves_of_logins_take_no_memory(service: Process) -> None:
    before = resident(service)
    with contextlib.ExitStack() as opened:
        for _ in range(30):
            connection = opened.enter_context(connected(service))
            connection.sendall(LOGIN + b"Content-Length: %d\r\n\r\n" % (2 * MIB))
            with contextlib.suppress(ConnectionError):
                connection.sendall(b'{"token":"' + b"x" * MIB)
        assert resident(service) - before < 8 * MIB


def test_who_has_failed_too_often_is_told_before_anything_is_read(service: Process) -> None:
    assert [logged_in(service, f"guess {n}") for n in range(11)] == [401] * 10 + [429]
    with connected(service) as connection:
        connection.sendall(LOGIN + b"Content-Length: 5000\r\n\r\n")
        assert status(connection) == 429


# — whose attempts they are —


def guesses(service: Process, count: int, *lines: str, source: str = "127.0.0.1") -> list[int]:
    return [logged_in(service, f"guess {n}", *(line.format(n) for line in lines), source=source) for n in range(count)]


def test_a_header_is_no_address(service: Process) -> None:
    told = guesses(service, 12, "X-Forwarded-For: 192.0.2.{}", "Forwarded: for=192.0.2.{}", "X-Real-IP: 192.0.2.{}")
    assert told == [401] * 10 + [429] * 2


def test_a_proxy_that_is_trusted_is_believed(tmp_path: Path) -> None:
    """Each of those that it speaks for has attempts of their own; strange words are nobody's address, and no fault."""
    with started(tmp_path / "data", SAE_ACTOR_SERVER_TRUSTED_PROXIES="127.0.0.0/30, ::1") as process:
        assert guesses(process, 11, "X-Forwarded-For: 192.0.2.{}") == [401] * 11
        assert guesses(process, 11, "X-Forwarded-For: ::ffff:198.51.100.7") == [401] * 10 + [429]
        assert logged_in(process, TOKEN, "X-Forwarded-For: 198.51.100.7") == 429
        assert guesses(process, 11, "X-Forwarded-For: 192.0.2.{}", source="127.0.0.9") == [401] * 10 + [429]
        for strange in ("fe80::1%eth0", "garbage", "\xff\xfe", "1.2.3.4, ,", "[::1]:80", "a" * 5000, ""):
            assert logged_in(process, "guess", f"X-Forwarded-For: {strange}") == 401
        with connected(process) as connection:
            body = b'{"token":"%s"}' % TOKEN.encode()
            connection.sendall(LOGIN + b"X-Forwarded-Proto: https\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert b"__Host-" in connection.recv(4096)
        whole(process)


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_addresses_of_ipv4_on_a_socket_of_ipv6(tmp_path: Path) -> None:
    """Who guesses at one of them does not keep the others out, and a proxy there is known by its own address."""
    environment = {"SAE_ACTOR_SERVER_HOST": "::", "SAE_ACTOR_SERVER_TRUSTED_PROXIES": "127.0.0.9"}
    with started(tmp_path / "data", **environment) as process:
        assert guesses(process, 11, source="127.0.0.66") == [401] * 10 + [429]
        assert logged_in(process, TOKEN, source="127.0.0.77") == 200
        assert guesses(process, 11, "X-Forwarded-For: 192.0.2.{}", source="127.0.0.9") == [401] * 11


# — the end of a login —


def by_cookie(service: Process) -> tuple[str, dict[str, str]]:
    """The cookie of a login, and the headers that a page would send with it."""
    answer = httpx.post(f"{service.url}/login", json={"token": TOKEN})
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return cookie, {"cookie": cookie, "origin": service.url}


@pytest.mark.parametrize("beside", ["", "; {}=x", "; {}="])
def test_a_logout_ends_what_the_cookie_opened(service: Process, beside: str) -> None:
    """Streams too, and whatever cookie of that name somebody has put beside it."""
    cookie, headers = by_cookie(service)
    both = {**headers, "cookie": cookie + beside.format(cookie.partition("=")[0])}
    with httpx.stream("GET", f"{service.url}/api/events", headers=headers, timeout=10) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: ActorStarted"
        began = time.monotonic()
        assert httpx.post(f"{service.url}/logout", headers=both).status_code == 200
        for _ in lines:  # to its end, which is a good one
            pass
        assert time.monotonic() - began < 5
    assert httpx.get(f"{service.url}/api/saes", headers=headers).status_code == 401
    other = by_cookie(service)[1]
    assert httpx.get(f"{service.url}/api/saes", headers=other).status_code == 200


def test_a_login_that_runs_out_ends_its_streams(tmp_path: Path) -> None:
    with started(tmp_path / "data", SAE_ACTOR_SERVER_SESSION_HOURS="0.0005") as process:
        _, headers = by_cookie(process)
        began = time.monotonic()
        answer = httpx.get(f"{process.url}/api/events", headers=headers, timeout=10)
        assert "event: ActorStarted" in answer.text
        assert 1 < time.monotonic() - began < 5
        assert httpx.get(f"{process.url}/api/events", headers=headers).status_code == 401
        whole(process)


HEAVY = {
    "a key over and over": b'{"type":"UnloadModel",' + b'"type":"UnloadModel",' * 190_000 + b'"type":"UnloadModel"}',
    "many keys": b'{"prompt":"a","metadata":{' + b",".join(b'"%d":"a"' % n for n in range(290_000)) + b"}}",
    "many strings": b'{"prompt":[' + b'"a",' * 1_000_000 + b'"a"]}',
    "many numbers": b'{"prompt":[' + b"1," * 2_000_000 + b"1]}",
}


@pytest.mark.parametrize("body", HEAVY.values(), ids=HEAVY)
def test_large_bodies_keep_nobody_waiting(service: Process, body: bytes) -> None:
    path = "/api/commands" if b"UnloadModel" in body else "/v1/completions"
    raw = head(path, f"Content-Length: {len(body)}", "Connection: close") + body

    def post() -> bytes:
        with connected(service) as connection:
            connection.sendall(raw)
            return to_the_end(connection)

    with ThreadPoolExecutor(2) as pool:
        posted = [pool.submit(post) for _ in range(2)]
        told = seconds_of_health(service, 1.5)
        answers = [each.result() for each in posted]
    assert all(re.match(rb"HTTP/1\.1 4\d\d ", answer) for answer in answers), answers
    assert max(told) < 0.8, max(told)
