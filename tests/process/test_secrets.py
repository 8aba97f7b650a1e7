"""Row 72: a token in HF_TOKEN, sent through every way in which a hub can fail, comes out nowhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs here

from tests.fakes.hub_handler import SIGNATURE
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files

from .downloading import TOKEN, Listening, downloading, files_of
from .harness import Process, until

SAE = "layer.1"
FILES = sae_files(SAE, d_in=64, d_sae=512)
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(1000)}
ECHOED = f"Authorization: Bearer {TOKEN}".encode()
"""A hub may say back what it was told."""

FAULTS: dict[str, dict[str, Any]] = {
    "unauthorized": {"on": "info", "status": 401, "body": ECHOED, "message": TOKEN},
    "hidden": {"on": "info", "status": 401, "code": "RepoNotFound", "body": ECHOED},
    "gated": {"on": "head", "status": 403, "code": "GatedRepo", "message": TOKEN},
    "forbidden": {"on": "store", "status": 403, "body": ECHOED},
    "gone": {"on": "tree", "status": 404, "body": ECHOED},
    "bad": {"on": "head", "status": 400, "message": TOKEN},
    "limited": {"on": "info", "status": 429, "headers": {"Retry-After": TOKEN}, "body": ECHOED},
    "broken": {"on": "tree", "status": 500, "body": ECHOED},
    "dropped": {"on": "store", "drop": True},
    "hanging": {"on": "store", "hang": 30.0},
    "cut": {"on": "store", "cut_after": 100},
    "wrong": {"on": "store", "corrupt": "flip"},
    "login": {"on": "info", "body": ECHOED},
    "commit": {"on": "info", "body": b'{"sha": "%s"}' % TOKEN.encode()},
    "listed": {"on": "tree", "body": b'[{"type": "file", "path": "../%s", "oid": "", "size": 1}]' % TOKEN.encode()},
    "etag": {"on": "head", "headers": {"X-Linked-Etag": TOKEN}},
    "redirect": {"on": "head", "location": f"http://evil.example/?token={TOKEN}"},
    "protocol": {"on": "head", "location": f"file:///{TOKEN}"},
    "loop": {"on": "tree", "location": "/api/models/org/loop/tree/main"},
}

MODELS = {"gated", "unauthorized", "dropped", "wrong", "redirect"}
"""A model is asked for as well: its fetch has the same ways to fail."""
CATALOGS = {"limited", "login", "listed", "loop"}


def _texts(process: Process, data: Path, answers: list[str]) -> Iterator[tuple[str, bytes]]:
    """Everything that came out of the service, and what it keeps."""
    for path in data.parent.rglob("*"):
        assert TOKEN not in path.name
        if path.is_file():
            yield str(path), path.read_bytes()
    for number, answer in enumerate(answers):
        yield f"answer {number}", answer.encode()
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        yield f"command of {each.pid}", " ".join(each.cmdline()).encode()


def test_the_token_is_in_nothing_that_comes_out(server: HubServer, data: Path) -> None:
    answers: list[str] = []
    with downloading(server, data, "--quick", "--fetch-models") as process, Listening(process) as listening:
        for name, fault in FAULTS.items():
            server.publish(f"org/{name}", FILES if name not in MODELS else {**FILES, **MODEL})
            server.fault(**fault)
            commands = [{"type": "Download", "repository_id": f"org/{name}", "path": SAE}]
            commands += [{"type": "LoadModel", "model": f"org/{name}"}] if name in MODELS else []
            for command in commands:
                answer = process.client.post("/api/commands", json=command, headers={"Prefer": "wait=20"})
                answers.append(answer.text)
                assert answer.json()["status"] == "failed", (name, answer.text)
            if name in CATALOGS:
                catalog = process.client.get("/api/catalog", params={"repository_id": f"org/{name}"})
                answers.append(catalog.text)
                assert catalog.status_code >= 400
            server.heal()
        server.publish("org/slow", FILES)
        server.fault("store", rate=20_000)
        process.client.post("/api/saes/download", json={"repository_id": "org/slow"})
        until(lambda: any(name.endswith(".incomplete") for name in files_of(data)))
        time.sleep(0.3)
        for route in ("/api/log?limit=5000", "/api/saes", "/api/state", "/metrics", "/ready", "/api/model"):
            answers.append(process.client.get(route).text)
        answers.append(listening.text)
        assert "DownloadFailed" in listening.text
        assert "download_progress" in listening.text
        for where, text in _texts(process, data, answers):
            assert TOKEN.encode() not in text, where
            assert SIGNATURE.encode() not in text, where
    assert {each.headers.get("authorization") for each in server.asked("info")} == {f"Bearer {TOKEN}"}
    assert TOKEN.encode() not in process.stderr.read_bytes()
