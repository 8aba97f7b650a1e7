"""A backup while a run computes: restored elsewhere the run goes on to the same end, and labels are found."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.conftest import Ran, command

from .harness import Process, until
from .test_kill import SAE_ID, SCRIPT

__all__ = ["command"]

TEXTS = [f"text number {number}" + " and more" * (number % 5) for number in range(2500)]
LABELS = [{"feature": 7, "label": "harbour lights"}, {"feature": 9, "label": "storms at night"}]


def view(process: Process, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = process.client.get(f"/api/runs/{run_id}").raise_for_status().json()
    return found


def run(process: Process) -> str:
    texts_id = process.client.put(
        "/api/texts",
        content="".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        headers={"content-type": "application/x-ndjson"},
    ).raise_for_status().json()["texts_id"]  # fmt: skip
    spec = {"texts": {"texts_id": texts_id}, "sae_id": SAE_ID}
    answer = process.client.post("/api/commands", json={"type": "Run", "kind": "evaluate", "spec": spec})
    run_id: str = answer.raise_for_status().json()["run_id"]
    return run_id


def found(process: Process, word: str) -> list[tuple[int, str]]:
    page = process.client.get(f"/api/saes/{SAE_ID}/features", params={"q": word}).raise_for_status().json()
    return [(feature["feature"], feature["label"]) for feature in page["features"]]


def held(path: Path) -> tuple[list[Any], list[Any]]:
    """Texts and rows of a run."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        texts, rows = (f"SELECT * FROM {table} ORDER BY number" for table in ("texts", "rows"))
        return database.execute(texts).fetchall(), database.execute(rows).fetchall()


def test_a_run_goes_on_where_the_backup_found_it(tmp_path: Path, command: Callable[..., Ran]) -> None:
    data, file, there = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "there"
    with Process(data, "--measure-seconds", "0.02") as process:
        for key, each in SCRIPT[:4]:
            assert process.send(key, **each)["status"] == "completed"
        process.client.put(
            f"/api/saes/{SAE_ID}/labels",
            content="".join(json.dumps(label) + "\n" for label in LABELS),
            headers={"content-type": "application/x-ndjson"},
        ).raise_for_status()
        assert found(process, "harbour") == [(7, "harbour lights")]
        run_id = run(process)
        until(lambda: view(process, run_id)["rows"] >= 2)
        assert command("backup", str(file), "--saes", "--url", process.url).code == 0
        assert view(process, run_id)["state"] == "running", "there was still something to compute"
        until(lambda: view(process, run_id)["state"] == "completed")
        whole = view(process, run_id)
    assert command("restore", str(file), "--data-dir", str(there)).code == 0
    shutil.copytree(there, tmp_path / "copy")
    texts, rows = held(tmp_path / "copy" / "runs" / f"{run_id}.db")
    all_texts, all_rows = held(data / "runs" / f"{run_id}.db")
    assert texts == all_texts
    assert 2 <= len(rows) < len(all_rows)
    assert rows == all_rows[: len(rows)]
    (uploaded,) = (path.name for path in (data / "runs" / "texts").glob("*.db"))
    (brought,) = (path for path in (tmp_path / "copy" / "runs" / "texts").iterdir())
    assert (brought.name, held(brought)[0]) == (uploaded, held(data / "runs" / "texts" / uploaded)[0])
    with Process(there) as process:
        process.until_ready()
        for word, expected in (("harbour", (7, "harbour lights")), ("storms", (9, "storms at night"))):
            assert found(process, word) == [expected]
        until(lambda: view(process, run_id)["state"] == "completed")
        again = view(process, run_id)
        assert {name: again[name] for name in ("summary", "rows", "rows_sha256")} == {
            name: whole[name] for name in ("summary", "rows", "rows_sha256")
        }
    assert held(there / "runs" / f"{run_id}.db") == (all_texts, all_rows)
