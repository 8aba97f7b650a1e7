"""kill -9 in the middle of runs, at moments that chance picks: every row is there once, the summary is the same.

The normal suite kills two runs of each kind; `pytest -m crash` twenty.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .harness import Process, until
from .test_kill import PATH, SAE_ID

TEXTS = {"texts": [f"text number {number}" + " and more" * (number % 5) for number in range(64 * 9 + 10)]}


class Kind(NamedTuple):
    spec: dict[str, Any]
    of_row: Callable[[dict[str, Any]], Any]
    """What tells a row from the others of its run."""


EDITS = [{"feature": 584, "strength": strength} for strength in (20.0, 60.0, 100.0)]
VARIANTS = [{"name": f"{edit['strength']:g}", "sae": {"steering": [edit]}} for edit in EDITS]
SWEEP = {
    "prompts": [f"prompt {number}" for number in range(12)],
    "variants": [{"name": "none", "sae": {"baseline": True}}, *VARIANTS],
    "seeds": [1, 2],
    "max_tokens": 6,
    "continuations": [" yes"],
    "features": [584],
}
HALVES = {name: {"texts": TEXTS["texts"][:200][number::2]} for number, name in enumerate(("positive", "negative"))}
KINDS = {
    "evaluate": Kind({"sae_id": SAE_ID, "texts": TEXTS}, lambda row: row["texts"]),
    "profile": Kind({"sae_id": SAE_ID, "texts": TEXTS, "top": 3}, lambda row: row["feature"]),
    "contrast": Kind({"sae_id": SAE_ID, **HALVES}, lambda row: row["feature"]),
    "sweep": Kind(SWEEP, lambda row: (row["prompt"], row["variant"], row["seed"], row["text"], row["ce_unsteered"])),
}


def begun(data: Path) -> Process:
    return Process(data, "--measure-seconds", "0.03", "--step-seconds", "0.002")


def prepared(data: Path) -> Process:
    """A service with a model and an SAE."""
    process = begun(data)
    for key, command in (
        ("load", {"type": "LoadModel", "model": "tiny"}),
        ("import", {"type": "Import", "path": PATH}),
        ("attach", {"type": "Attach", "sae_id": SAE_ID}),
    ):
        assert process.send(key, **command)["status"] == "completed"
    return process


def asked(process: Process, kind: str, key: str) -> str:
    command = {"type": "Run", "kind": kind, "spec": KINDS[kind].spec}
    answer = process.client.post("/api/commands", json=command, headers={"Idempotency-Key": key})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


def view(process: Process, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = process.client.get(f"/api/runs/{run_id}").raise_for_status().json()
    return found


def completed(process: Process, run_id: str) -> dict[str, Any]:
    until(lambda: view(process, run_id)["state"] in ("completed", "failed", "cancelled"), 120)
    found = view(process, run_id)
    assert found["state"] == "completed", found
    return found


def rows(process: Process, run_id: str) -> list[dict[str, Any]]:
    answer = process.client.get(f"/api/runs/{run_id}/rows").raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]


def killed(tmp_path: Path, kind: str, times: int, seed: int) -> None:
    """`times` runs, each killed once or twice, against one that nothing disturbed."""
    chance, of_row = random.Random(seed), KINDS[kind].of_row
    data, cut = tmp_path / "data", 0
    process = prepared(data)
    try:
        began = time.monotonic()
        whole_id = asked(process, kind, "whole")
        whole, lasted = completed(process, whole_id), time.monotonic() - began
        wanted = rows(process, whole_id)
        assert len({json.dumps(of_row(row)) for row in wanted}) == len(wanted) == whole["rows"]
        for number in range(times):
            run_id = asked(process, kind, f"run-{number}")
            for _ in range(chance.choice((1, 1, 2))):
                time.sleep(chance.uniform(0, 0.9 * lasted))  # where it is hit is chance; what must hold is not
                cut += view(process, run_id)["state"] != "completed"
                process.signal(signal.SIGKILL)
                process.wait()
                process.end()
                process = begun(data)
                process.until_ready()
            found = completed(process, run_id)
            assert found["summary"] == whole["summary"]
            assert found["rows"] == whole["rows"]
            assert [of_row(row) for row in rows(process, run_id)] == [of_row(row) for row in wanted]
            if not any("generation_id" in row for row in wanted):
                assert found["rows_sha256"] == whole["rows_sha256"]
        assert cut >= times // 2, "most came too late to be a disturbance"
        assert process.client.get("/api/log/verify").json()["ok"]
    finally:
        process.end()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_are_killed_come_to_the_same_end(tmp_path: Path, kind: str) -> None:
    killed(tmp_path, kind, 2, seed=1)


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_runs_of_each_kind_that_are_killed(tmp_path: Path, kind: str) -> None:
    killed(tmp_path, kind, 20, seed=2)
