"""Starts that must not be: two on one log, a log of a newer version, a lock that a dead service's child still holds."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest
from msgspec.structs import replace

from sae_actor.eventlog import SqliteLog
from sae_actor.eventlog.lock import NAME as LOCK
from tests.eventlog.making import a_draft, content
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files

from .downloading import REPOSITORY, children, downloading, start, status_of
from .harness import ROOT, Process, until


def serving(data: Path) -> list[str]:
    return ["sae_actor", "serve", "--port", "0", "--data-dir", str(data)]


def race(data: Path) -> None:
    """Two services within a millisecond; one serves, the other leaves with 75 and says who has the log."""
    both = [
        subprocess.Popen([sys.executable, "-m", *serving(data)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    try:
        until(lambda: any(each.poll() is not None for each in both))
        loser = next(each for each in both if each.poll() is not None)
        winner = next(each for each in both if each is not loser)
        assert loser.returncode == 75
        assert loser.stderr is not None
        assert f"process {winner.pid}" in loser.stderr.read()
        assert winner.stdout is not None
        assert " on http://" in winner.stdout.readline()
        assert winner.poll() is None
    finally:
        for each in both:
            each.kill()
            each.communicate()


def test_row_19_two_services_started_at_once(tmp_path: Path) -> None:
    """Of fifty openings of the log alone: tests/eventlog/test_lock.py."""
    race(tmp_path / "data")


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_row_19_fifty_times(tmp_path: Path) -> None:
    for _ in range(50):
        race(tmp_path / "data")


def open_files(process: psutil.Process) -> list[str]:
    """What each descriptor of the process leads to."""
    found = []
    for each in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(each))
    return found


def test_row_21_a_child_dies_with_the_service_and_holds_up_no_start(server: HubServer, data: Path) -> None:
    server.publish(REPOSITORY, sae_files())
    server.fault("info", hang=30.0)
    with downloading(server, data) as process:
        start(process)
        until(lambda: len(children(process)) == 1)
        (child,) = children(process)
        assert not [name for name in open_files(child) if name.startswith(f"{data.resolve()}/events")]
        process.signal(signal.SIGKILL)
        process.wait()
        with (data / LOCK).open("rb") as file:
            # Free at the first try: a start would wait for a child that had inherited it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server.heal()
        with downloading(server, data) as after:
            assert after.url, after.stderr.read_text()
            assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
            until(lambda: status_of(after) == "cached")


def test_row_23_a_log_of_a_newer_version_is_served_for_reading_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    known, newer = a_draft(), a_draft("of tomorrow")
    later = [
        replace(newer, event_id="e2", type="SaeMelted"),
        replace(newer, event_id="e3", schema=7),
    ]

    async def write() -> None:
        log = await SqliteLog.open(data)
        await log.append([known, *later], expected=0)
        await log.close()

    asyncio.run(write())
    before = content(data)
    with Process(data, command=serving(data)) as process:
        assert process.url == ""
        assert process.wait() == 78
        assert "event 2 is a SaeMelted of schema 1" in process.stderr.read_text()
    with Process(data, command=[*serving(data), "--read-only"]) as process:
        events = process.events()
        assert [(event["type"], event["schema"]) for event in events[1:]] == [("SaeMelted", 1), ("ActorStopped", 7)]
        assert events[1]["data"] == {"reason": "of tomorrow"}
        assert process.client.get("/api/state").json()["position"] == 3
        assert process.client.get("/api/log/verify").json()["ok"]
        refusal = process.client.post("/api/commands", json={"type": "UnloadModel"})
        assert (refusal.status_code, refusal.json()["code"]) == (503, "read_only")
        text = process.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert (text.status_code, text.json()["error"]["code"]) == (503, "read_only")
    assert content(data) == before
