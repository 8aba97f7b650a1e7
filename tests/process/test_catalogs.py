"""Many who ask for catalogs of a hub that does not answer: few processes, and none once they have left."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest

from sae_actor.hub.catalogs import RUNNING, WAITING
from tests.api.raw import parsed

from .harness import Process, until


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with Process(tmp_path / "data", environment=environment) as process:
            yield process
            assert process.stderr.read_text() == ""


def asking(process: Process, repository_id: str) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=10)
    raw.sendall(f"GET /api/catalog?repository_id={repository_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return raw


def children(process: Process) -> int:
    return len(psutil.Process(process.pid).children())


def test_few_catalogs_at_a_time_and_the_others_are_told_when_to_come_back(process: Process) -> None:
    crowd = [asking(process, f"org/x{number}") for number in range(60)]
    answers = [parsed(raw.recv(4096)) for raw in crowd[RUNNING + WAITING :]]
    assert Counter(answer.status for answer in answers) == {503: 60 - RUNNING - WAITING}
    assert all(answer.header("retry-after") for answer in answers)
    until(lambda: children(process) == RUNNING)
    for raw in crowd[1:]:
        raw.close()
    until(lambda: children(process) == 1)
    crowd[0].close()
    until(lambda: children(process) == 0)
    with asking(process, "org/next"):
        until(lambda: children(process) == 1)
    until(lambda: children(process) == 0)


def test_equal_catalogs_are_one_until_the_last_who_asks_has_left(process: Process) -> None:
    crowd = [asking(process, "org/same") for _ in range(30)]
    until(lambda: children(process) == 1)
    for raw in crowd[1:]:
        raw.close()
    assert process.client.get("/health").status_code == 200
    assert children(process) == 1
    crowd[0].close()
    until(lambda: children(process) == 0)
