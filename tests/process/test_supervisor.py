"""systemd's notify protocol, with its socket in our hand."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Process
from .test_kill import SCRIPT


class Socket:
    """What systemd would hear, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(60)

    def message(self) -> dict[str, str]:
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> list[dict[str, str]]:
        """All up to the first that has `name`."""
        heard = [self.message()]
        while name not in heard[-1]:
            heard.append(self.message())
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Socket]:
    found = Socket(tmp_path / "notify")
    yield found
    found.close()


def test_a_life(tmp_path: Path, systemd: Socket) -> None:
    environment = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "1000000"}
    with Process(tmp_path / "data", environment=environment) as process:
        heard = systemd.until("READY")
        assert heard[-1] == {"READY": "1", "STATUS": "ready"}
        assert systemd.message() == {"WATCHDOG": "1"}
        process.signal(signal.SIGHUP)
        reloading = systemd.until("RELOADING")[-1]
        assert int(reloading["MONOTONIC_USEC"]) > 0, "Type=notify-reload asks for it"
        systemd.until("READY")
        process.signal(signal.SIGTERM)
        assert systemd.until("STOPPING")[-1] == {"STOPPING": "1", "STATUS": "draining"}
        assert process.wait(10) == 0


def test_ready_once_the_model_is_back(tmp_path: Path, systemd: Socket) -> None:
    data = tmp_path / "data"
    with Process(data) as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
    with Process(data, "--load-seconds", "1", environment={"NOTIFY_SOCKET": str(systemd.path)}) as process:
        heard = systemd.until("READY")
        assert "model tiny is being loaded" in heard[0]["STATUS"]
        assert int(heard[0]["EXTEND_TIMEOUT_USEC"]) > 1_000_000
        assert process.client.get("/ready").status_code == 200


def test_a_supervisor_that_has_gone_is_not_missed(tmp_path: Path) -> None:
    with Process(tmp_path / "data", environment={"NOTIFY_SOCKET": str(tmp_path / "nothing")}) as process:
        assert process.client.get("/health").status_code == 200
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert process.stderr.read_text() == ""
