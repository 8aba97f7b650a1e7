"""SIGTERM while clients wait: each is told why, at once, and nothing is left on standard error."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.raw import Answer, parsed

from .harness import Process
from .test_kill import SAE_ID, SCRIPT

HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
SOON = 2.0
"""Far below the seconds that the server grants to requests before it cancels them."""


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def begun(process: Process, request: bytes) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=10)
    raw.sendall(request)
    return raw


def posted(path: str, body: dict[str, Any], extra: bytes = b"") -> bytes:
    content = json.dumps(body).encode()
    head = b"POST %s HTTP/1.1\r\n" % path.encode() + HEAD + extra
    return head + b"Content-Length: %d\r\n\r\n" % len(content) + content


def told(raw: socket.socket) -> Answer:
    """Everything up to the end of the connection."""
    with raw:
        parts = []
        while part := raw.recv(1 << 16):
            parts.append(part)
    return parsed(b"".join(parts))


def is_refused(answer: Answer) -> bool:
    assert (answer.status, answer.header("content-type")) == (503, "application/problem+json")
    assert answer.header("retry-after") is not None
    assert answer.header("x-content-type-options") == "nosniff", "hardened like all others"
    return bool(json.loads(answer.body)["code"] == "not_ready")


def test_who_waits_at_sigterm_is_told_at_once(tmp_path: Path, silent_hub: str) -> None:
    environment = {"HF_ENDPOINT": silent_hub}
    with Process(tmp_path / "data", "--load-seconds", "60", environment=environment) as process:
        posting = begun(process, posted("/api/commands", SCRIPT[0][1], b"Prefer: wait=60\r\n"))
        time.sleep(0.5)
        path = f"/api/commands/{process.events()[-1]['command_id']}".encode()
        asking = begun(process, b"GET " + path + b" HTTP/1.1\r\n" + HEAD + b"Prefer: wait=60\r\n\r\n")
        sending = begun(process, b"POST /api/commands HTTP/1.1\r\n" + HEAD + b"Content-Length: 100\r\n\r\n{")
        listing = begun(process, b"GET /api/catalog?repository_id=org/saes HTTP/1.1\r\n" + HEAD + b"\r\n")
        following = begun(process, b"GET /api/events HTTP/1.1\r\n" + HEAD + b"\r\n")
        time.sleep(0.5)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        posting_told, asking_told = told(posting), told(asking)
        assert posting_told.status == 202
        assert json.loads(posting_told.body)["status"] == "accepted"
        assert asking_told.status == 200
        assert json.loads(asking_told.body)["status"] == "accepted"
        assert is_refused(told(sending))
        assert is_refused(told(listing))
        assert b'event: bye\ndata: {"why":"the service is stopping"}' in told(following).body
        assert time.monotonic() - began < SOON
        assert process.wait(10) == 0
    assert process.stderr.read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_texts_end_on_record_before_the_rest_is_refused(tmp_path: Path, number: int) -> None:
    """SIGINT grants them no time, SIGTERM what is set."""
    environment = {"SAE_ACTOR_SERVER_DRAIN_SECONDS": "0.3"}
    with Process(tmp_path / "data", "--step-seconds", "0.2", environment=environment) as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        body = {"prompt": "hello world", "max_tokens": 60}
        whole = begun(process, posted("/v1/completions", body))
        stream = begun(process, posted("/v1/completions", {**body, "stream": True}))
        time.sleep(1)
        process.signal(number)
        answer, streamed = told(whole), told(stream).body
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "not_ready")
        assert b'"code":"not_ready"' in streamed
        assert b"[DONE]" not in streamed
        assert process.wait(10) == 0
    assert process.stderr.read_text() == ""


def test_a_reader_that_stalls_is_cut_off_without_a_word(tmp_path: Path) -> None:
    with Process(tmp_path / "data") as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        for strength in range(200):
            edits = [{"feature": feature, "strength": 1.0 + strength} for feature in range(256)]
            steer = {"type": "Steer", "sae_id": SAE_ID, "features": edits}
            assert process.client.post("/api/commands", json=steer).status_code == 202
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", int(process.url.rpartition(":")[2])))
            stalled.sendall(b"GET /api/log HTTP/1.1\r\nAccept: application/x-ndjson\r\n" + HEAD + b"\r\n")
            time.sleep(0.5)
            process.signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert process.stderr.read_text() == ""
