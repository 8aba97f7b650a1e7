"""Spans of a service that is asked for them: one a request, to a collector over OTLP, without a query in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .harness import ROOT, Process

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")


class Collector(ThreadingHTTPServer):
    """Takes what is exported, and keeps the bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.bodies: list[bytes] = []


class _Export(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # the base class names it so
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def environment(collector: Collector) -> dict[str, str]:
    url = f"http://127.0.0.1:{collector.server_address[1]}"
    return {
        "SAE_ACTOR_SERVER_OPENTELEMETRY": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }


def test_a_span_for_each_request(tmp_path: Path, collector: Collector) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with Process(tmp_path / "data", environment=environment(collector)) as process:
        process.client.get("/api/saes?note=canary-1")
        process.client.get("/api/log?after=0&types=ActorStarted", headers={"authorization": "Bearer canary-2"})
        process.client.get("/api/saes/none")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.stderr.read_text() == ""
    exported = [ExportTraceServiceRequest.FromString(body) for body in collector.bodies]
    resources = [resource for each in exported for resource in each.resource_spans]
    names = [attribute.value.string_value for resource in resources for attribute in resource.resource.attributes]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert "sae-actor" in names
    assert len(spans) == 3
    told = [{each.key: each.value for each in span.attributes} for span in spans]
    assert [str(span.name) for span in spans] == [
        "GET /api/saes", "GET /api/log", "GET /api/saes/{sae_id}"
    ]  # fmt: skip
    assert {each["sae_actor.principal"].string_value for each in told} == {"local"}
    assert not any(b"canary" in body for body in collector.bodies)


def test_a_collector_that_is_away_holds_nothing_up(tmp_path: Path, collector: Collector) -> None:
    away = {**environment(collector), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with Process(tmp_path / "data", environment=away) as process:
        assert process.client.get("/api/saes").status_code == 200
        process.signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_without_its_libraries_the_start_is_refused(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden', name='opentelemetry')\n")
    surroundings = {
        **os.environ,
        "PYTHONPATH": f"{hidden.parent}{os.pathsep}{ROOT}",
        "SAE_ACTOR_SERVER_OPENTELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-m", "sae_actor", "serve", "--data-dir", str(tmp_path / "data"), "--port", "0"],
        cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert "pip install 'sae-actor[otel]'" in done.stderr
    assert not (tmp_path / "data").exists()
