"""A service that downloads from the fake hub, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs here

from sae_actor.domain.weights import sae_id_of
from tests.fakes.hub_server import HubServer

from .harness import Process

TOKEN = "hf_tokencanary1618033988"
"""A canary: no test may find it where it does not belong."""
REPOSITORY = "org/saes"
SAE_ID = sae_id_of(REPOSITORY, None, "main")
TERMINAL = {"DownloadCompleted", "DownloadFailed", "DownloadCancelled"}
Event = dict[str, Any]


def downloading(server: HubServer, data: Path, *arguments: str) -> Process:
    """A service on the folder `data` whose hub is `server`; its home is a folder beside."""
    home = data.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    return Process(data, *arguments, environment=environment)


def start(process: Process, repository_id: str = REPOSITORY, **more: Any) -> None:
    """Ask for a download, and do not wait for it."""
    answer = process.client.post("/api/saes/download", json={"repository_id": repository_id, **more})
    assert answer.status_code == 202, answer.text


def children(process: Process) -> list[psutil.Process]:
    """The processes below the service that do its downloads."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("sae_actor." in part and part.endswith("child") for part in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def terminal(process: Process, sae_id: str = SAE_ID) -> list[str]:
    """Types of the events that ended a download of this SAE, in order."""
    return [e["type"] for e in process.events() if e["type"] in TERMINAL and e["data"]["sae_id"] == sae_id]


def status_of(process: Process, sae_id: str = SAE_ID) -> str:
    """Of the SAE: its status, or `none` where there is no record."""
    answer = process.client.get(f"/api/saes/{sae_id}")
    return str(answer.json()["status"]) if answer.status_code == 200 else "none"


class Listening:
    """Everything that `/api/events` says, as it was sent, while the block lasts."""

    def __init__(self, process: Process) -> None:
        port = int(process.url.rsplit(":", 1)[-1])
        self._socket = socket.create_connection(("127.0.0.1", port))
        # In HTTP/1.0 a body is not cut into chunks.
        self._socket.sendall(b"GET /api/events HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
        self._heard = bytearray(self._socket.recv(1 << 16))
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self._socket.recv(1 << 16):
                self._heard += piece

    @property
    def text(self) -> str:
        return self._heard.decode()

    def told(self, kind: str) -> list[Event]:
        """Data of every frame of this type."""
        frames = self.text.split("\n\n")[:-1]
        return [json.loads(f.partition("\ndata: ")[2]) for f in frames if f"event: {kind}\n" in f]


def files_of(data: Path) -> dict[str, int]:
    """Size of every file and link below hub/."""
    folder = data / "hub"
    return {
        os.path.relpath(os.path.join(at, name), folder): os.lstat(os.path.join(at, name)).st_size
        for at, _, names in os.walk(folder)
        for name in names
    }
