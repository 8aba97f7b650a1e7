"""Row 73: a real service process that may not have more files, threads, memory or room in /tmp."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest

from tests.api.raw import parsed

from .harness import Process, until
from .network import kept, whole
from .test_kill import SCRIPT

GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def all_of_it(process: Process) -> None:
    for key, command in SCRIPT:
        assert process.send(key, **command)["status"] == "completed"


def asked(raw: socket.socket) -> int:
    """Status of the answer; 0 where the connection was closed in its place."""
    try:
        raw.sendall(GET)
        answer = raw.recv(4096)
    except ConnectionError:
        return 0
    return parsed(answer).status if answer else 0


def test_row_73_few_files(tmp_path: Path) -> None:
    """72 files, of which some twenty are its own: what is too many is told so or closed, whoever is connected is
    served, and later all is well."""
    limited = {"LIMITS": "NOFILE=72"}
    with Process(tmp_path / "data", module="tests.process.limited", environment=limited) as process:
        port = int(process.url.rpartition(":")[2])
        assert process.client.get("/health").status_code == 200  # stays connected
        crowd = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(150)]
        told = Counter(asked(raw) for raw in crowd)
        assert set(told) == {200, 503, 0}
        assert told[200] >= 16
        assert psutil.Process(process.pid).num_fds() <= 72
        all_of_it(process)
        for raw in crowd:
            raw.close()
        until(lambda: psutil.Process(process.pid).num_fds() < 24)
        assert httpx.get(f"{process.url}/health").status_code == 200
        whole(process)
    assert process.stderr.read_text() == ""


def _threads_at_most(pid: int) -> int:
    (line,) = [each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "processes" in each]
    return int(line.split()[2])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that any user may reach: `limited` is another one than root where threads are counted."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="threads are counted for all processes of a user")
def test_row_73_few_threads(open_folder: Path) -> None:
    """Those it has and none more: no child can be started, so a download fails and says so; all else goes on."""
    limited = {"LIMITS": "NPROC=64"}
    with Process(open_folder / "data", module="tests.process.limited", environment=limited) as process:
        all_of_it(process)
        process.signal(signal.SIGUSR2)
        until(lambda: _threads_at_most(process.pid) < 64)
        download = {"type": "Download", "repository_id": "org/saes"}
        outcome = process.client.post("/api/commands", json=download, headers={"Prefer": "wait=20"}).json()
        assert outcome["status"] == "failed"
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: httpx.get(f"{process.url}/api/log?limit=5").status_code, range(64)))
        assert set(answers) == {200}
        for key, command in SCRIPT[2:]:
            assert process.send(f"{key}-again", **command)["status"] == "completed"
        kept(process)


def test_row_73_little_memory(tmp_path: Path) -> None:
    """What does not fit into the address space is answered 503, and what does is answered."""
    with Process(tmp_path / "data") as process:
        all_of_it(process)
        most = psutil.Process(process.pid).memory_info().vms + 16 * 1024 * 1024
        resource.prlimit(process.pid, resource.RLIMIT_AS, (most, most))
        body = b'{"type":"UnloadModel","x":"' + b"x" * (4 * 1024 * 1024 - 100) + b'"}'

        def post(_: int) -> int:
            headers = {"content-type": "application/json"}
            try:
                return httpx.post(f"{process.url}/api/commands", content=body, headers=headers, timeout=30).status_code
            except httpx.TransportError:
                return 0

        with ThreadPoolExecutor(32) as pool:
            told = Counter(pool.map(post, range(48)))
        assert set(told) <= {400, 503, 0}
        assert told[503] > 0
        kept(process)
        assert process.send("again", **SCRIPT[2][1])["status"] == "completed"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without room."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system")
    with (folder / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(bytes(512)))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_row_73_a_full_tmp(tmp_path: Path, full: Path) -> None:
    with Process(tmp_path / "data", environment={"TMPDIR": str(full), "SQLITE_TMPDIR": str(full)}) as process:
        all_of_it(process)
        whole(process)
    assert [path.name for path in full.iterdir()] == ["ballast"]
