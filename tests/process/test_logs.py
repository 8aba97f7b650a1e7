"""What a service process says on standard error, in JSON: each request once, each command by its id, no secret."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import httpx

from .harness import Process, until

TOKEN = "canary-token-2718"
JSON_LINES = {
    "SAE_ACTOR_SERVER_LOG_FORMAT": "json",
    "SAE_ACTOR_SERVER_LOG_LEVEL": "info",
    "SAE_ACTOR_SERVER_TOKEN": TOKEN,
}


def lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.stderr.read_text().splitlines()]


def test_requests_as_lines_of_json(tmp_path: Path) -> None:
    with Process(tmp_path / "data", environment=JSON_LINES) as process:
        process.client.headers["authorization"] = f"Bearer {TOKEN}"
        accepted = process.client.post("/api/commands", json={"type": "LoadModel", "model": "tiny"})
        process.client.get("/api/saes?token=canary-token-2718")
        process.client.get("/api/saes?note=canary-token-2718")
        process.client.get("/api/saes", headers={"authorization": "Bearer canary-token-9999"})
        process.client.get("/health")
        process.client.get("/a%0d%0a{%22forged%22:1}")
        process.client.post("/api/commands", content=b'{"type": "canary-token-2718"', headers={"content-type": "a/b"})
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        told = [line for line in lines(process) if line["logger"] == "sae_actor.access"]
    assert [(line["method"], line["path"], line["status"]) for line in told] == [
        ("POST", "/api/commands", 202),
        ("GET", "/api/saes", 400),
        ("GET", "/api/saes", 200),
        ("GET", "/api/saes", 401),
        ("GET", "/health", 200),
        ("GET", '/a\\r\\n{"forged":1}', 404),
        ("POST", "/api/commands", 415),
    ]
    assert told[0]["command_id"] == accepted.json()["command_id"]
    assert [line["principal"] for line in told] == ["token", None, "token", None, "token", "token", None]
    assert all(line["level"] == "INFO" and 0 <= line["ms"] < 10_000 and line["time"].endswith("Z") for line in told)
    assert "canary" not in process.stderr.read_text()


def test_faults_as_lines_of_json(tmp_path: Path) -> None:
    """A traceback is a member of its line, and whatever stops a start is a line too."""
    with Process(tmp_path / "data", environment=JSON_LINES) as holder:
        second = Process(tmp_path / "data", environment=JSON_LINES)
        with second:
            assert second.wait() == 75
        (why,) = lines(second)
        assert (why["level"], why["logger"]) == ("ERROR", "sae_actor")
        assert str(holder.pid) in why["message"]


def test_text_is_for_people(tmp_path: Path) -> None:
    environment = {"SAE_ACTOR_SERVER_LOG_LEVEL": "info"}
    with Process(tmp_path / "data", environment=environment) as process:
        process.client.get("/api/saes?secret=canary")
        answer = process.client.post("/api/commands", json={"type": "LoadModel", "model": "tiny"}).json()
        until(lambda: answer["command_id"] in process.stderr.read_text())
        told = process.stderr.read_text()
    assert "INFO sae_actor.access: GET /api/saes 200 in " in told
    assert f"by local, command {answer['command_id']}" in told
    assert "canary" not in told


def test_who_asks_an_open_route_is_nobody(tmp_path: Path) -> None:
    environment = {"SAE_ACTOR_SERVER_LOG_LEVEL": "info", "SAE_ACTOR_SERVER_TOKEN": TOKEN}
    with Process(tmp_path / "data", environment=environment) as process:
        httpx.get(f"{process.url}/health")
        alone = re.compile(r"GET /health 200 in [0-9.]+ ms$", re.MULTILINE)
        until(lambda: alone.search(process.stderr.read_text()) is not None)


def test_requests_are_not_told_unless_asked_for(tmp_path: Path) -> None:
    with Process(tmp_path / "data") as process:
        process.client.get("/api/saes")
        assert process.stderr.read_text() == ""
