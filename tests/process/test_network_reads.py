"""Reads from a real service process by readers that mean it no good."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest

from tests.api.raw import parsed

from .harness import Process, until
from .test_kill import SAE_ID, SCRIPT

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


def test_a_stream_whose_request_has_a_body_of_many_pieces(process: Process) -> None:
    with connected(process) as raw:
        raw.sendall(b"GET /api/events HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
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


LARGE = 300
"""Events of 24 kB."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A log of a few megabytes."""
    with Process(tmp_path_factory.mktemp("large") / "data") as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        for strength in range(LARGE):
            steer(process, 1.0 + strength)
        yield process
        assert process.stderr.read_text() == ""


def steer(process: Process, strength: float) -> None:
    edits = [{"feature": feature, "strength": strength} for feature in range(256)]
    body = {"type": "Steer", "sae_id": SAE_ID, "features": edits}
    assert process.client.post("/api/commands", json=body).status_code == 202


def seconds(process: Process, path: str) -> float:
    began = time.monotonic()
    assert process.client.get(path).status_code == 200
    return time.monotonic() - began


def test_a_large_answer_is_whole(large: Process) -> None:
    page = large.client.get("/api/log", params={"limit": 5000})
    lines = large.client.get("/api/log", headers={"accept": "application/x-ndjson"}).text.splitlines()
    found = page.json()
    assert found["events"] == [json.loads(line) for line in lines]
    assert [event["position"] for event in found["events"]] == list(range(1, found["head"]["position"] + 1))
    assert page.headers["etag"] == large.client.get("/api/log?limit=1").headers["etag"]
    some = large.client.get("/api/log", params={"after": 10, "limit": 200}).json()["events"]
    assert some == found["events"][10:210]
    named = large.client.get("/api/log", params={"sae_id": SAE_ID, "limit": 5000}).json()["events"]
    assert named == [event for event in found["events"] if SAE_ID in json.dumps(event["data"])]


def test_readers_that_dawdle_keep_no_large_answers_in_memory(large: Process) -> None:
    memory = psutil.Process(large.pid).memory_info
    large.client.get("/api/log", params={"limit": 5000})
    before = memory().rss
    with contextlib.ExitStack() as stack:
        for number in range(24):
            raw = stack.enter_context(connected(large, 4096))
            accept = b"Accept: application/x-ndjson\r\n" if number % 2 else b""
            raw.sendall(b"GET /api/log?limit=5000 HTTP/1.1\r\n" + HOST + accept + b"\r\n")
        most = before
        for _ in range(30):
            time.sleep(0.1)
            most = max(most, memory().rss)
    assert most - before < 60_000_000, f"24 answers of {LARGE * 24} kB"


def test_a_short_read_does_not_stand_behind_long_ones(large: Process) -> None:
    """The second wave asks when the first has filled every place."""
    head = large.client.get("/health").json()["position"]
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connected(large)) for _ in range(200)]
        for number, raw in enumerate(crowd):
            path = (b"/api/generations", b"/api/log?sae_id=e", b"/api/state?at=%d" % (head - 1 - number))[number % 3]
            raw.sendall(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        short = [seconds(large, "/api/log?limit=1") for _ in range(5)]
        answers = [parsed(rest(raw)) for raw in crowd]
    told = Counter(answer.status for answer in answers)
    assert set(told) == {200, 503}
    assert all(answer.header("retry-after") for answer in answers if answer.status == 503)
    assert max(short) < 1.5


def test_filters_by_sae_hold_up_nobody(large: Process) -> None:
    """Each of the readers asks for another SAE, whose name is in the bytes of an event, but is not that of an SAE."""
    head = large.client.get("/health").json()["position"]
    with contextlib.ExitStack() as stack:
        for number in range(500):
            raw = stack.enter_context(connected(large))
            named = quote(f'ature":{number % 256},"stre'[number // 256 :])
            path = f"/api/events?after={head if number % 10 else 0}&sae_id={named}"
            raw.sendall(b"GET " + path.encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        until(lambda: "sae_actor_subscribers 500" in large.client.get("/metrics").text)
        waits = []
        for strength in range(5):
            steer(large, -1.0 - strength)
            waits.append(seconds(large, "/health"))
    assert max(waits) < 1.0
