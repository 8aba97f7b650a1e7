"""Starting, stopping and asking a service process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """One life of the service; `url` once it listens. `environment` is added to that of the tests.

    command: what follows `python -m`, in place of `launch` and its arguments.
    listens: wait for it; else nothing is waited for, and `url` stays empty.
    stderr: where its words go; beside the data folder, if None.
    """

    def __init__(
        self,
        data: Path,
        *arguments: str,
        module: str = "tests.process.launch",
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        listens: bool = True,
        stderr: Path | None = None,
    ) -> None:
        self.stderr = stderr or data.parent / f"{data.name}.stderr"
        with self.stderr.open("ab") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(command or (module, str(data), *arguments))],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=words, text=True, env={**os.environ, **(environment or {})},
            )  # fmt: skip
        self.pid = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline() if listens else ""
        self.url = line.rsplit(" on ", 1)[-1].strip() if " on http" in line else ""
        self.client = httpx.Client(base_url=self.url or "http://nowhere.invalid", timeout=30, verify=False)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        return self._process.wait(seconds)

    def line(self) -> str:
        """The next line that it says, waited for; empty once it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """Kill what still runs and close the pipes."""
        self.client.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def send(self, key: str, **command: Any) -> dict[str, Any]:
        """A command under a key, waited for. Raises `httpx.TransportError` when the process dies."""
        answer = self.client.post("/api/commands", json=command, headers={"Idempotency-Key": key, "Prefer": "wait=20"})
        outcome: dict[str, Any] = answer.json()
        return outcome

    def until_ready(self, seconds: float = 60) -> None:
        until(lambda: self.client.get("/ready").status_code == 200, seconds)

    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/api/log", params={"limit": 5000}).json()["events"]
        return found


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something another process does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
