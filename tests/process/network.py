"""A service process for what clients send: started, checked, asked over bare sockets."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs here

from tests.fold_by_hand import Books

from .harness import Process

TOKEN = "canary-4f1c9d0b7a6e"
LIMIT = 1.0
ENVIRONMENT = {
    "SAE_ACTOR_SERVER_TOKEN": TOKEN,
    "SAE_ACTOR_SERVER_REQUEST_SECONDS": str(LIMIT),
    "SAE_ACTOR_SERVER_STALLED_SECONDS": str(LIMIT),
}
COMMANDS = "/api/commands"
D_SAE, LAYERS = 2304, 30


def started(data: Path, *arguments: str, module: str = "tests.process.launch", **environment: str) -> Process:
    process = Process(data, *arguments, module=module, environment={**ENVIRONMENT, **environment})
    process.client.headers["authorization"] = f"Bearer {TOKEN}"
    return process


def whole(process: Process) -> None:
    """What is kept, and neither a token nor a fault of ours among what was said."""
    kept(process)
    assert TOKEN not in process.stderr.read_text()
    assert "Traceback" not in process.stderr.read_text()


def kept(process: Process) -> None:
    """The chain is whole, without a gap, the live state its fold, and no token in it."""
    assert process.client.get("/api/log/verify").json()["ok"]
    text = process.client.get("/api/log", headers={"accept": "application/x-ndjson"}).text
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    books = Books()
    for event in events:
        books.enter(event)
    assert books.view() == process.client.get("/api/state").json()
    assert TOKEN not in text


def position(process: Process) -> int:
    found: int = process.client.get("/health").json()["position"]
    return found


def refused(process: Process, status: int, body: bytes | Any, path: str = COMMANDS, method: str = "POST", *,
            kind: str | None = "application/json") -> dict[str, Any]:  # fmt: skip
    """The problem that these bytes are answered with; nothing but a refusal by the rules went on record."""
    before = position(process)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if kind is None else {"content-type": kind}
    answer = process.client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, (content[:200], answer.text)
    on_v1 = path.startswith("/v1/")
    assert answer.headers["content-type"] == ("application/json" if on_v1 else "application/problem+json")
    problem: dict[str, Any] = answer.json()
    assert ("error" in problem) if on_v1 else (problem["status"] == status)
    grown = process.client.get("/api/log", params={"after": before}).json()["events"]
    assert {event["type"] for event in grown} <= {"CommandRejected"}, grown
    return problem


def connected(process: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=15)


def head(path: str, *lines: str) -> bytes:
    own = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}")
    return "\r\n".join([*own, "Content-Type: application/json", *lines, "", ""]).encode("latin-1")


def to_the_end(raw: socket.socket) -> bytes:
    found = b""
    try:
        while more := raw.recv(1 << 16):
            found += more
    except ConnectionError:
        pass
    return found


def resident(process: Process) -> int:
    size: int = psutil.Process(process.pid).memory_info().rss
    return size
