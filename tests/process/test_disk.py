"""Disks that are full, may not be written, or fail at the sync: put under a real service by the kernel itself."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.eventlog.making import content

from .harness import Process

LOAD = {"type": "LoadModel", "model": "tiny"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where the machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def filled(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(bytes(512)))


def refused(process: Process, number: int) -> httpx.Response:
    """A command that the rules refuse, which goes on record: the smallest write there is."""
    command = {"type": "Detach", "sae_id": f"nothing-{number}"}
    return process.client.post("/api/commands", json=command)


def test_row_12_a_full_disk_is_a_service_that_can_be_read(disk: Path) -> None:
    data, ballast = disk / "data", disk / "ballast"
    with Process(data) as process:
        process.send("load", **LOAD)
        sound = process.events()
        filled(ballast)
        answers = [refused(process, number) for number in range(200)]
        codes = [answer.status_code for answer in answers]
        first = codes.index(507)
        assert set(codes[:first]) <= {404}
        assert answers[first].json()["code"] == "disk_full"
        assert set(codes[first + 1 :]) == {503}
        assert answers[-1].json()["code"] == "read_only"
        # What is there is served on: state, log, chain, stream.
        events = process.events()
        assert events[: len(sound)] == sound
        assert process.client.get("/api/model").json()["status"] == "loaded"
        ready = process.client.get("/ready")
        assert (ready.status_code, ready.json()["code"], ready.headers["retry-after"]) == (503, "read_only", "60")
        assert ready.json()["detail"].endswith("make space and restart the service")
        assert process.client.get("/api/log/verify").json()["ok"]
        with process.client.stream("GET", "/api/events", params={"after": 0}) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            assert next(lines).startswith('data: {"position":1,')
        process.signal(signal.SIGTERM)
        assert process.wait() == 74
    # Still full but for what the log could move out of its WAL: the next start can be read, or says why not.
    with Process(data) as process:
        if process.url:
            assert process.events()[: len(events)] == events
        else:
            assert process.wait() in (70, 78), process.stderr.read_text()
    ballast.unlink()
    with Process(data) as process:
        process.until_ready()
        assert process.events()[: len(events)] == events
        assert refused(process, 1).status_code == 404
        assert process.send("unload", type="UnloadModel")["status"] == "completed"
        assert process.client.get("/api/log/verify").json()["ok"]


def test_row_14_a_file_system_for_reading_only(disk: Path) -> None:
    data = disk / "data"
    with Process(data) as process:
        process.send("load", **LOAD)
        events = process.events()
        process.signal(signal.SIGTERM)
        process.wait()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = content(data)
    # Its words go beside the disk, which takes none.
    with Process(data, command=serve(data), stderr=disk.parent / "stderr") as process:
        assert process.url == "", "it never began to serve"
        assert process.wait() == 78
        assert "Read-only file system; --read-only serves it as it is" in process.stderr.read_text()
    with Process(data, command=[*serve(data), "--read-only"], stderr=disk.parent / "stderr") as process:
        assert process.client.get("/api/model").json()["model_id"] == "tiny"
        assert process.events()[: len(events)] == events
        answer = process.client.post("/api/commands", json=LOAD)
        assert (answer.status_code, answer.json()["code"]) == (503, "read_only")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert content(data) == before


def serve(data: Path) -> list[str]:
    return ["sae_actor", "serve", "--port", "0", "--data-dir", str(data)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_row_15_a_sync_that_fails_ends_the_service_and_is_not_tried_again(tmp_path: Path) -> None:
    """The kernel answers fdatasync of the write-ahead log with EIO, once; every sync is written down."""
    data, trace = tmp_path / "data", tmp_path / "trace"
    with Process(data) as process:
        assert process.send("load", **LOAD)["status"] == "completed"
        acknowledged = process.events()
        wal = data / "events.db-wal"
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", "-p", str(process.pid), "-o", str(trace), "-e", "trace=fdatasync,fsync",
             "-e", "inject=fdatasync,fsync:error=EIO:when=2"], stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert tracer.stderr is not None
            if b"attached" not in tracer.stderr.readline():
                pytest.skip("strace may not be used here")
            assert refused(process, 1).status_code == 404
            answer = until_it_fails(process)
            assert answer is None or answer.status_code >= 500
            assert process.wait(10) == 70
            assert "events.db could not be written" in process.stderr.read_text()
        finally:
            tracer.terminate()
            tracer.wait()
            tracer.stderr.close()  # type: ignore[union-attr]
    syncs = [line for line in trace.read_text().splitlines() if re.search(r"f(data)?sync\(", line)]
    failed = next(i for i, line in enumerate(syncs) if "EIO" in line)
    assert str(wal) in syncs[failed]
    assert not any(str(wal) in line for line in syncs[failed + 1 :]), "a sync that failed was tried again"
    with Process(data) as process:
        process.until_ready()
        assert process.events()[: len(acknowledged)] == acknowledged
        assert process.client.get("/api/log/verify").json()["ok"]


def until_it_fails(process: Process) -> httpx.Response | None:
    """The first answer that is no refusal of the rules; None where the service was gone before it could answer."""
    for number in range(2, 50):
        try:
            answer = refused(process, number)
        except httpx.TransportError:
            return None
        if answer.status_code != 404:
            return answer
    pytest.fail("nothing failed")


def test_an_upload_without_room_is_refused_as_that_and_leaves_nothing(disk: Path) -> None:
    data, ballast = disk / "data", disk / "ballast"
    with Process(data) as process:
        process.send("load", **LOAD)
        begun, body = ballast_for(ballast, 64 * 1024), b"a text\n" * 40_000

        def sent(body: bytes) -> httpx.Response:
            return process.client.put("/api/texts", content=body, headers={"content-type": "text/plain"})

        for _ in range(2):
            refusal = sent(body)
            assert (refusal.status_code, refusal.json()["code"]) == (507, "disk_full")
        assert [path for path in (data / "runs").rglob("*") if path.is_file()] == []
        begun.unlink()
        assert sent(b"a text\n" * 40).json()["count"] == 40


def ballast_for(ballast: Path, room: int) -> Path:
    """Fill the disk but for so many bytes."""
    filled(ballast)
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - room)
    return ballast
