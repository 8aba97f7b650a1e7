"""The stream through clients and a proxy that others wrote: curl, httpx-sse, nginx as it is set up by default.

Chromium's EventSource over a death of the service is in `tests/web`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse

from sae_actor.api.server.listener import listen
from sae_actor.client.sse import frames
from tests.children import child

from .harness import Process, until
from .test_kill import SAE_ID, SCRIPT
from .test_stream_readers import attached, head

NGINX = shutil.which("nginx")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx binary (Debian package: nginx-light)")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl binary (Debian package: curl)")
QUICK = {"SAE_ACTOR_SERVER_HEARTBEAT_SECONDS": "0.3"}


def steer(process: Process, key: str) -> None:
    assert process.send(key, type="Steer", sae_id=SAE_ID, features=[])["status"] == "completed"


@needs_curl
def test_curl(tmp_path: Path) -> None:
    with Process(tmp_path / "data", environment=QUICK) as process:
        attached(process)
        command = ["curl", "-sN", f"{process.url}/api/events"]
        with child(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            output = curl.stdout
            told = frames(iter(lambda: os.read(output.fileno(), 1 << 16), b""))
            old = [next(told) for _ in range(head(process))]
            steer(process, "live")
            live = next(told)
            while live.id is None:
                live = next(told)
            checkpoint = next(each for each in told if each.id is None)
            process.signal(signal.SIGTERM)
            last = list(told)[-1]
            assert curl.wait(10) == 0, "the answer ends as HTTP says"
        assert process.wait() == 0
    assert [int(each.id.partition(".")[2]) for each in (*old, live) if each.id] == list(range(1, len(old) + 2))
    assert (checkpoint.type, last.type) == ("checkpoint", "bye")
    assert json.loads(checkpoint.data) == {"position": len(old) + 1, "hash": json.loads(live.data)["hash"]}


@pytest.mark.timeout(60)
def test_httpx_sse_over_a_restart(tmp_path: Path) -> None:
    """A client resumes with the last id it was given, and waits as long as it was told."""
    data = tmp_path / "data"
    found: list[dict[str, Any]] = []
    with Process(data, environment=QUICK) as process:
        attached(process)
        before = head(process)
        last_id, retry, _ = told(process.url, found, before)
        assert retry == 2000
        steer(process, "unseen")
        port = process.url.rpartition(":")[2]
    with Process(data, "--port", port, environment=QUICK) as process:
        process.until_ready()
        steer(process, "live")
        events = process.events()
        _, _, kinds = told(process.url, found, len(events), last_id)
        assert "reset" not in kinds
        assert kinds.count("message") == 0, "no empty events between"
    assert found == events


def told(url: str, found: list[dict[str, Any]], upto: int, last_id: str = "") -> tuple[str, int | None, list[str]]:
    """Durable events are added to `found` up to that position, and two checkpoints awaited; last id, retry, types."""
    retry: int | None = None
    kinds: list[str] = []
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with httpx.Client(timeout=20) as client, connect_sse(client, "GET", f"{url}/api/events", headers=headers) as source:
        for event in source.iter_sse():
            kinds.append(event.event)
            retry = event.retry or retry
            last_id = event.id
            if event.event in ("checkpoint", "reset", "download_progress", "model_progress", "message"):
                if kinds.count("checkpoint") >= 2 and found and found[-1]["position"] >= upto:
                    break
            else:
                found.append(event.json())
    return last_id, retry, kinds


@needs_nginx
@pytest.mark.timeout(60)
def test_nginx_in_front_with_its_defaults(tmp_path: Path) -> None:
    with Process(tmp_path / "data", environment=QUICK) as process, proxied(tmp_path, process.url) as url:
        with httpx.Client(base_url=url, timeout=20) as client:
            for key, command in SCRIPT[:3]:
                answer = client.post(
                    "/api/commands", json=command, headers={"Idempotency-Key": key, "Prefer": "wait=20"}
                )
                assert answer.json()["status"] == "completed", answer.text
            with client.stream("GET", "/api/events") as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                told = frames(answer.iter_raw())
                old = [next(told) for _ in range(head(process))]
                for number in range(5):
                    began = time.monotonic()
                    steer(process, f"live-{number}")
                    live = next(each for each in told if each.id is not None)
                    assert live.type == "SteeringChanged"
                    assert time.monotonic() - began < 2, "each frame comes through at once: nothing is gathered"
                quiet = next(told)
                assert quiet.type == "checkpoint"
            resumed = {"Last-Event-ID": old[2].id or ""}
            with client.stream("GET", "/api/events", headers=resumed) as answer:
                first = next(frames(answer.iter_raw()))
                assert first.id == old[3].id
            ask = {"prompt": "hi", "max_tokens": 3, "temperature": 0, "stream": True}
            with client.stream("POST", "/v1/completions", json=ask) as answer:
                assert answer.read().endswith(b"data: [DONE]\n\n")
            with client.stream("GET", "/api/events") as answer:
                told = frames(answer.iter_raw())
                next(told)
                process.signal(signal.SIGTERM)
                assert list(told)[-1].type == "bye"
        assert process.wait() == 0


@contextmanager
def proxied(folder: Path, url: str, location: str | None = None) -> Iterator[str]:
    """nginx with nothing set but where it listens, where it may write, and `location`, or where it hands on to."""
    assert NGINX is not None
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        f"events {{}}\nhttp {{ access_log off; {places}\n"
        f"server {{ listen 127.0.0.1:{port}; {location or f'location / {{ proxy_pass {url}; }}'} }} }}\n"
    )
    command = [NGINX, "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(folder / "nginx.conf")]
    with child(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as nginx:
        try:
            until(lambda: answers(port), 10)
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.wait(10)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code in (200, 404)
    except httpx.TransportError:
        return False
