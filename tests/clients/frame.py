"""An environment for each client, made anew in a temporary folder, and a table of what came of it.

A script gets the service's address, without a slash at its end, as its one argument, and an empty working folder. It
prints what it was told and raises what is wrong: the last line that it prints is its row's remark. The service has a
model and one SAE, attached, and allows pages of the origin `PAGE`; a script leaves it unsteered. A table's clients
share one: the demo, unless an address is given. A test's client has one of its own: the engine that needs no torch
where that is enough, else the demo.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.process.harness import Process
from tests.process.test_stream_readers import attached

SCRIPTS = Path(__file__).parent / "scripts"
PAGE = "http://page.test"
"""Of a page that uses the API from a browser."""
ALLOWED = {"SAE_ACTOR_SERVER_CORS_ORIGINS": PAGE}
SECONDS = 1800
"""No bound on a slow machine, only the end of a client that hangs."""


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    name: str
    requirements: tuple[str, ...]
    """For pip; the first one's version is told, unless there is one of `bare`."""
    script: str
    """Of `scripts/`; `.mjs` is for node."""
    programs: tuple[str, ...] = ()
    """What has to be on the machine besides Python, node and npm; one of several that are separated by "|"."""
    packages: tuple[str, ...] = ()
    """For npm, into the working folder; without requirements the first one's version is told."""

    bare: tuple[str, ...] = ()
    """For pip, after the requirements and without what these ask for themselves."""
    real: bool = False
    """Needs a real model: the demo's, unless an address is given."""

    @property
    def missing(self) -> list[str]:
        needed = (*self.programs, *(("node", "npm") if self.packages else ()))
        return [each for each in needed if not any(shutil.which(program) for program in each.split("|"))]


@dataclass(frozen=True)
class Row:
    name: str
    version: str
    seconds: float
    failed: bool
    remark: str

    def __str__(self) -> str:
        result = "failed" if self.failed else "ok"
        return f"{self.name:32} {self.version:12} {self.seconds:6.0f} s  {result:6}  {self.remark}"


@contextmanager
def service(url: str | None, *, real: bool = False) -> Iterator[str]:
    """The address of a service with a model and an attached SAE: of a new one, unless one is given."""
    if url is not None:
        yield url
        return
    if real:
        with tempfile.TemporaryDirectory() as folder, demo(Path(folder) / "data") as address:
            yield address
        return
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder) / "data", environment=ALLOWED) as process:
        attached(process)
        yield process.url


@contextmanager
def demo(data: Path) -> Iterator[str]:
    command = ("sae_actor", "demo", "--port", "0", "--data-dir", str(data))
    with Process(data, command=command, environment=ALLOWED) as process:
        while not (line := process.line()).startswith("ready"):
            assert line, process.stderr.read_text()
        yield process.url


def tried(client: Client, url: str | None = None) -> Row:
    """Make the client's environment and run its script in it."""
    began = time.monotonic()
    if client.missing:
        return Row(client.name, "", 0.0, True, f"needs {', '.join(client.missing)}")
    with tempfile.TemporaryDirectory() as folder, service(url, real=client.real) as address:
        bin_folder, work = Path(folder) / "venv" / "bin", Path(folder) / "work"
        work.mkdir()
        python = str(bin_folder / "python")
        # Neither its packages nor its modules are to be found from there.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PATH": f"{bin_folder}:{environment.get('PATH', '')}", "HOME": folder}
        commands = [[sys.executable, "-m", "venv", str(bin_folder.parent)]]
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if client.requirements:
            commands.append([*pip, *client.requirements])
        if client.bare:
            commands.append([*pip, "--no-deps", *client.bare])
        if client.packages:
            (work / "package.json").write_text('{"private": true}')
            commands.append(["npm", "install", "--silent", "--no-audit", "--no-fund", *client.packages])
        # node looks for packages beside the script.
        script = shutil.copy(SCRIPTS / client.script, work)
        commands.append(["node" if client.script.endswith(".mjs") else python, str(script), address])
        failed, said = False, ""
        for command in commands:
            given = environment if command is commands[-1] else None
            failed, said = _ran(command, work, given)
            if failed:
                print(said, file=sys.stderr)
                break
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        version = _version(python, client, work)
    seconds = time.monotonic() - began
    return Row(client.name, version, seconds, failed, lines[-1] if lines else "")


def _ran(command: Sequence[str], work: Path, environment: dict[str, str] | None) -> tuple[bool, str]:
    """Whether it failed, and what it said: of what succeeds, not on standard error."""
    try:
        ran = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        before = (error.stdout or b"").decode(errors="replace")
        return True, f"{before}\n{Path(command[-2]).name} had not ended after {SECONDS} s"
    return bool(ran.returncode), ran.stdout + (ran.stderr if ran.returncode else "")


def _version(python: str, client: Client, work: Path) -> str:
    if told := (*client.bare, *client.requirements):
        name = told[0].partition(">")[0].partition("=")[0].partition("[")[0]
        asked = f"from importlib.metadata import version; print(version({name!r}))"
        return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False).stdout.strip()
    packages = client.packages
    if not packages:
        return ""
    described = work / "node_modules" / (packages[0][0] + packages[0][1:].partition("@")[0]) / "package.json"
    return str(json.loads(described.read_bytes())["version"]) if described.exists() else ""


def table(clients: Sequence[Client], url: str | None = None) -> int:
    """Try each; how many failed."""
    failed = 0
    with service(url, real=True) as address:
        for client in clients:
            row = tried(client, address)
            failed += row.failed
            print(row, flush=True)
    return failed
