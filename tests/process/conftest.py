"""A fake hub on loopback, the folder of a service that talks to it, and one process for what clients may send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.hub_server import HubServer

from .harness import Process
from .network import started, whole
from .test_kill import SCRIPT


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One process for all rows: none of them may hurt it. A model is loaded, the bundled SAE attached."""
    with started(tmp_path_factory.mktemp("network") / "data") as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        yield process


@pytest.fixture
def service(running: Process) -> Iterator[Process]:
    yield running
    whole(running)
