"""Row 81: a copy of a log is told apart from the log, on record and to the readers of its events."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .harness import ROOT, Process
from .test_kill import SCRIPT

Event = dict[str, Any]
FULL = {"method": "add", "positions": "all", "exclude": ["sink"], "unit": "raw", "sae_id": None, "when": None}


def stopped(process: Process) -> None:
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def forks(events: list[Event]) -> list[Event]:
    return [event for event in events if event["type"] == "LogForked"]


def first_words(process: Process, last_id: str | None = None) -> list[str]:
    """The first two lines of the stream that name an id or an event, to a reader that had this id."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    found: list[str] = []
    with process.client.stream("GET", "/api/events", headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith(("id: ", "event: ")):
                found.append(line)
            if len(found) == 2:
                break
    return found


def last_id(process: Process) -> str:
    """As a reader of the stream knows it."""
    mark = first_words(process)[0].removeprefix("id: ").partition(".")[0]
    return f"{mark}.{process.events()[-1]['position']}"


def test_row_81_two_services_on_two_copies_of_one_log(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with Process(first) as process:
        for key, command in SCRIPT[:4]:
            assert process.send(key, **command)["status"] == "completed"
        stopped(process)
    shutil.copytree(first, second)
    with Process(first) as original, Process(second) as copy:
        for each in (original, copy):
            each.until_ready()
        had = last_id(original)
        assert forks(original.events()) == []
        common = next(event for event in reversed(original.events()) if event["type"] == "ActorStopped")
        (fork,) = forks(copy.events())
        assert fork["position"] == common["position"] + 1
        branch = fork["data"]["branch_id"]
        assert fork["data"] == {
            "reason": "copied",
            "branch_id": branch,
            "parent_id": fork["data"]["parent_id"],
            "parent_head": {"position": common["position"], "hash": common["hash"]},
        }
        assert had.partition(".")[0] == fork["data"]["parent_id"][:8] != branch[:8]
        # What was attached and steered is there in both.
        attachments = [each.client.get("/api/saes/attachment").json()["attachments"] for each in (original, copy)]
        assert [each["steering"] for (each,) in attachments] == [[SCRIPT[3][1]["features"][0] | FULL]] * 2
        assert first_words(copy, had)[0] == "event: reset"
        assert first_words(original, f"{branch[:8]}.3")[0] == "event: reset"
        assert first_words(copy, f"{branch[:8]}.3")[0] == f"id: {branch[:8]}.4"
        stopped(copy)
    with Process(second) as copy:
        copy.until_ready()
        assert forks(copy.events()) == [fork], "it is found where it was"
        assert first_words(copy, f"{branch[:8]}.3")[0] == f"id: {branch[:8]}.4"
        assert copy.client.get("/api/log/verify").json()["ok"]


def test_a_folder_with_another_name_is_no_fork(tmp_path: Path) -> None:
    with Process(tmp_path / "one") as process:
        stopped(process)
    (tmp_path / "one").rename(tmp_path / "other")
    with Process(tmp_path / "other") as process:
        assert forks(process.events()) == []
        assert [event["type"] for event in process.events()] == ["ActorStarted", "ActorStopped", "ActorStarted"]


ELSEWHERE = """
import socket, subprocess, sys
subprocess.run(["mount", "--bind", sys.argv[1], sys.argv[2]], check=True)
socket.sethostname("another")
from sae_actor.cli import main
raise SystemExit(main(["serve", "--port", "0", "--data-dir", sys.argv[2]]))
"""


def test_a_container_with_another_host_name_on_the_same_volume_is_no_fork(tmp_path: Path) -> None:
    """As one sees it: a mount of the same volume, under another path and another host name."""
    apart = ["unshare", "--uts", "--mount"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("namespaces cannot be made here")
    with Process(tmp_path / "data") as process:
        stopped(process)
    (tmp_path / "there").mkdir()
    serving = subprocess.Popen(
        [*apart, sys.executable, "-c", ELSEWHERE, str(tmp_path / "data"), str(tmp_path / "there")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert serving.stdout is not None
    assert " on http://" in serving.stdout.readline()
    serving.send_signal(signal.SIGINT)
    serving.communicate(timeout=30)
    with Process(tmp_path / "data") as process:
        assert [event["type"] for event in process.events()] == ["ActorStarted", "ActorStopped"] * 2 + ["ActorStarted"]


def test_the_first_start_after_an_import_is_a_fork(tmp_path: Path) -> None:
    with Process(tmp_path / "data") as process:
        for key, command in SCRIPT[:4]:
            assert process.send(key, **command)["status"] == "completed"
        had = last_id(process)
        stopped(process)
    for words in (("export", "bundle.tar", "--data-dir", "data"), ("import", "bundle.tar", "--data-dir", "new")):
        subprocess.run(
            [sys.executable, "-m", "sae_actor", "log", *words],
            cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    for start in range(2):
        with Process(tmp_path / "new") as process:
            process.until_ready()
            (fork,) = forks(process.events())
            assert fork["data"]["reason"] == "imported"
            assert not (tmp_path / "new" / "events.origin").exists(), f"after start {start}"
            assert first_words(process, had)[0] == "event: reset"
            (attached,) = process.client.get("/api/saes/attachment").json()["attachments"]
            assert attached["steering"] == [SCRIPT[3][1]["features"][0] | FULL]
            stopped(process)
