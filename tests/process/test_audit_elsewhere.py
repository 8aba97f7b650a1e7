"""Row 75: the log, carried to another machine, says there what it said here: no GPU, no network, no side effect."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.eventlog.making import content

from .harness import ROOT, Process
from .test_kill import SCRIPT

SPY = """
import sys
from sae_actor.cli import main
code = main(sys.argv[1:])
heavy = [name for name in ("torch", "transformers", "numpy", "huggingface_hub", "litestar") if name in sys.modules]
print(heavy, file=sys.stderr)
raise SystemExit(code)
"""


def elsewhere(home: Path, *arguments: str) -> str:
    """A log command as another user's machine would run it: an empty home, and no network where that can be had."""
    alone = ["unshare", "-n"] if subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0 else []
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [*alone, sys.executable, "-c", SPY, "log", *arguments],
        cwd=home, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "[]\n")
    return answer.stdout


def test_row_75_the_audit_on_another_machine(tmp_path: Path) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    home.mkdir()
    with Process(data) as process:
        for key, command in SCRIPT[:4]:
            assert process.send(key, **command)["status"] == "completed"
        text = process.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).json()
        state, events = process.client.get("/api/state").json(), process.events()
        head = process.client.get("/api/log/verify").json()["head"]
        process.signal(signal.SIGKILL)
        process.wait()
    # As a kill left it, with events in the WAL alone; of the hub's files nothing goes along.
    there = home / "log"
    there.mkdir()
    for name in ("events.db", "events.db-wal", "head.checkpoint"):
        shutil.copy(data / name, there / name)
    before = content(home)
    where = ("--data-dir", str(there))
    verified = json.loads(elsewhere(home, "verify", "--json", *where))
    assert (verified["ok"], verified["head"]) == (True, head)
    assert json.loads(elsewhere(home, "state", "--json", *where)) == state
    assert [json.loads(line) for line in elsewhere(home, "show", "--json", *where).splitlines()] == events
    told = json.loads(elsewhere(home, "explain", text["sae"]["generation_id"], "--json", *where))
    assert told["generation_id"] == text["sae"]["generation_id"]
    assert content(home) == before, "something was made or changed"
