"""Rows 6, 7, 13 and 53 of FAULTS.md, put through a real service with a hub on loopback."""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest

from sae_actor.domain.weights import sae_id_of
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files

from .downloading import REPOSITORY, SAE_ID, children, downloading, files_of, start, status_of, terminal
from .harness import Process, until

LARGE = sae_files(d_in=1024, d_sae=12_800)
"""105 MB."""
MIDDLE = sae_files(d_in=256, d_sae=4096)
"""8 MB."""
WEIGHTS = "sae_weights.safetensors"


PHASES: dict[str, dict[str, Any]] = {
    "connecting": {"on": "info", "hang": 30.0},
    "listing": {"on": "tree", "hang": 30.0},
    "headers": {"on": "head", "hang": 30.0},
    "body": {"on": "store", "rate": 2_000_000},
    "silent body": {"on": "store", "drip": 30.0},
    "back-off": {"on": "head", "status": 429, "headers": {"Retry-After": "3600"}},
}


def test_a_cancel_ends_in_two_seconds_in_every_phase(server: HubServer, data: Path) -> None:
    with downloading(server, data) as process:
        for phase, fault in PHASES.items():
            repository_id = f"org/{phase.replace(' ', '-')}"
            sae_id = sae_id_of(repository_id, None, "main")
            server.publish(repository_id, MIDDLE)
            server.fault(**fault)
            before = len(server.asked(fault["on"]))
            start(process, repository_id)
            until(lambda on=fault["on"], before=before: len(server.asked(on)) > before)  # type: ignore[misc]
            time.sleep(0.1)
            assert len(children(process)) == 1, phase
            _cancelled(process, sae_id, phase)
            assert files_of(data) == {}, phase
            time.sleep(0.2)  # for the server's socket to notice
            sent = len(server.asked()), server.sent()
            time.sleep(0.2)
            assert (len(server.asked()), server.sent()) == sent, phase
            assert process.client.post(f"/api/saes/{sae_id}/cancel").status_code == 404, phase
            server.heal()


def _cancelled(process: Process, sae_id: str, phase: str) -> None:
    began = time.monotonic()
    answer = process.client.post(f"/api/saes/{sae_id}/cancel")
    assert time.monotonic() - began < 2, phase
    assert answer.status_code == 200, (phase, answer.text)
    assert not children(process), phase
    assert terminal(process, sae_id) == ["DownloadCancelled"], phase
    assert status_of(process, sae_id) == "none", phase


def test_a_cancel_at_the_rename(server: HubServer, data: Path) -> None:
    """The process is stopped once the weights have their name, before it could say that it is done."""
    server.publish(REPOSITORY, LARGE)
    with downloading(server, data) as process:
        start(process)
        until(lambda: any(size == len(LARGE[WEIGHTS]) for size in files_of(data).values()), 30)
        (child,) = children(process)
        child.suspend()
        assert terminal(process) == []
        _cancelled(process, SAE_ID, "rename")
        assert files_of(data) == {}


def test_kill_9_in_the_middle_of_100_mb_goes_on_by_itself(server: HubServer, data: Path) -> None:
    """Row 6."""
    server.publish(REPOSITORY, LARGE)
    server.fault("store", rate=60_000_000)
    size = len(LARGE[WEIGHTS])
    with downloading(server, data) as process:
        start(process)
        until(lambda: any(each > size // 2 for each in files_of(data).values()), 30)
        (child,) = children(process)
        process.signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs([child], timeout=2)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not any(name.startswith("snapshots") or "/snapshots/" in name for name in files_of(data))
    server.heal()
    with downloading(server, data) as process:
        until(lambda: status_of(process) == "cached", 30)
        types = [event["type"] for event in process.events()]
        assert process.client.get("/api/log/verify").json()["ok"]
    assert types == ["ActorStarted", "DownloadRequested", "ActorStarted", "EffectInterrupted", "DownloadCompleted"]
    assert server.sent("store") < 1.15 * size
    assert len(server.asked("store")) == 2
    assert not any(name.endswith(".incomplete") for name in files_of(data))


def test_kill_9_between_the_rename_and_the_event(server: HubServer, data: Path) -> None:
    """Row 7."""
    server.publish(REPOSITORY, MIDDLE)
    with downloading(server, data, "--kill", "before", "3") as process:
        start(process)
        assert process.wait() == -signal.SIGKILL
    assert any("/snapshots/" in name for name in files_of(data))
    asked = len(server.asked("store"))
    with downloading(server, data) as process:
        until(lambda: status_of(process) == "cached")
        assert terminal(process) == ["DownloadCompleted"]
    assert len(server.asked("store")) == asked, "what was there was right, and is not fetched again"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB, where the machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_fails_the_download_and_not_the_log(server: HubServer, small_disk: Path) -> None:
    """Row 13."""
    data, ballast = small_disk / "data", small_disk / "ballast"
    server.publish(REPOSITORY, MIDDLE)
    server.fault("store", rate=4_000_000)
    with downloading(server, data, "--quick") as process:
        start(process)
        until(lambda: any(size > 2_000_000 for size in files_of(data).values()))
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            file.writelines(itertools.repeat(bytes(1 << 16)))
        until(lambda: status_of(process) == "error")
        error = process.client.get(f"/api/saes/{SAE_ID}").json()["error"]
        assert (error["code"], error["fields"]["reason"]) == ("disk_full", "no_space")
        assert terminal(process) == ["DownloadFailed"]
        assert process.client.get("/api/log/verify").json()["ok"]
        assert not any(name.endswith(".incomplete") or "/snapshots/" in name for name in files_of(data))
        ballast.unlink()
        server.heal()
        start(process)
        until(lambda: status_of(process) == "cached")
        assert terminal(process) == ["DownloadFailed", "DownloadCompleted"]
