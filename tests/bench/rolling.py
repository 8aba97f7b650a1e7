"""Restarts under load, as a supervisor does them, and what becomes of the requests meanwhile.

    python -m tests.bench.rolling [--restarts 3] [--failures 1] [--clients 16]

A supervisor with systemd's notify socket, `Restart=on-failure` and the same port each time: `--restarts` times SIGTERM
and a start (`systemctl restart`), `--failures` times SIGKILL, after which it starts the service because it has failed.
It goes on once the service says READY. OpenAI's client, unmodified but for its number of retries, asks for texts all
the while, from `--clients` threads; it waits as Retry-After says. A request that it does not get answered in the end is
lost: the exit code is their number.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import openai

from tests.process.harness import Process, until
from tests.process.test_draining import WORDS, prepared, texts

RETRIES = 30
"""Of the client: its default is 2, in about a second; a start takes longer."""


class Rolled(NamedTuple):
    made: list[int]
    """Texts of each client, each whole."""
    lost: list[str]
    """Why requests were given up."""
    begun: int
    ended: int
    """Texts on record."""
    exits: list[int]
    """How each life ended."""


class Supervisor:
    """Starts the service again, and waits for READY."""

    def __init__(self, folder: Path) -> None:
        self._data, path = folder / "data", folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(120)
        self._environment = {"NOTIFY_SOCKET": str(path), "SAE_ACTOR_SERVER_DRAIN_SECONDS": "30"}
        self._port = "0"
        self.exits: list[int] = []
        self.process = self._started()

    def restart(self, number: signal.Signals) -> None:
        self.process.signal(number)
        self.exits.append(self.process.wait(60))
        self.process.end()
        self.process = self._started()

    def end(self) -> None:
        self.process.end()
        self._socket.close()

    def _started(self) -> Process:
        process = Process(self._data, "--step-seconds", "0.02", "--port", self._port, environment=self._environment)
        self._port = process.url.rpartition(":")[2]
        # The datagrams of the life before are read past: it says no READY after STOPPING.
        while b"READY=1" not in self._socket.recv(4096).splitlines():
            pass
        return process


def rolled(folder: Path, *, restarts: int, failures: int, clients: int, say: Callable[[str], object] = print) -> Rolled:
    """What became of the requests; each life serves some before it ends."""
    supervisor, stop, lost = Supervisor(folder), threading.Event(), list[str]()
    url = supervisor.process.url

    def ask() -> int:
        client, made = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=RETRIES, timeout=60), 0
        while not stop.is_set():
            try:
                answer = client.completions.create(
                    model="default", prompt="hello", max_tokens=WORDS, extra_body={"ignore_eos": True}
                )
            except openai.APIError as error:
                lost.append(f"{type(error).__name__}: {error}")
                continue
            if answer.choices[0].finish_reason != "length":
                lost.append(f"a text that ended with {answer.choices[0].finish_reason}")
            made += 1
        return made

    with ThreadPoolExecutor(clients) as threads:
        try:
            prepared(supervisor.process)
            asking = [threads.submit(ask) for _ in range(clients)]
            for number in [signal.SIGTERM] * restarts + [signal.SIGKILL] * failures:
                before = texts(supervisor.process)[1]
                until(lambda: texts(supervisor.process)[1] >= before + clients)  # noqa: B023 - called at once
                supervisor.restart(number)
                say(f"{number.name}: ended with {supervisor.exits[-1]}, and is ready again")
            before = texts(supervisor.process)[1]
            until(lambda: texts(supervisor.process)[1] >= before + clients)
        finally:
            stop.set()
            made = [each.result() for each in asking]
            begun, ended = texts(supervisor.process)
            supervisor.end()
    return Rolled(made, lost, begun, ended, supervisor.exits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--failures", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = rolled(Path(folder), restarts=given.restarts, failures=given.failures, clients=given.clients)
    print(
        f"{sum(found.made)} texts of {len(found.made)} clients, {len(found.lost)} lost; on record {found.begun} begun,"
    )
    print(f"{found.ended} ended, of which some were made again after the failure of the service that made them")
    for each in found.lost:
        print(each)
    return len(found.lost)


if __name__ == "__main__":
    sys.exit(main())
