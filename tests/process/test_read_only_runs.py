"""`serve --read-only` shows runs, their rows and uploaded texts, and changes no file, after a kill too."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

from tests.eventlog.making import content

from .harness import Process, until
from .test_run_kills import asked, completed, prepared, rows


def test_rows_are_read_where_nothing_may_be_written(tmp_path: Path) -> None:
    data, stopped = tmp_path / "data", tmp_path / "stopped"
    with prepared(data) as process:
        lines = b"".join(json.dumps({"text": f"line {number}"}).encode() + b"\n" for number in range(3))
        sent = process.client.put("/api/texts", content=lines, headers={"content-type": "application/x-ndjson"})
        texts_id = sent.raise_for_status().json()["texts_id"]
        run_id = asked(process, "evaluate", "run")
        summary = completed(process, run_id)["summary"]
        wanted = rows(process, run_id)
        process.signal(signal.SIGKILL)
        process.wait()
    shutil.copytree(data, stopped)
    with Process(stopped) as process:
        process.until_ready()
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    for folder in (data, stopped):
        before = content(folder)
        with Process(
            folder, command=["sae_actor", "serve", "--port", "0", "--data-dir", str(folder), "--read-only"]
        ) as it:
            until(lambda it=it: it.client.get("/health").status_code == 200)  # type: ignore[misc]
            assert it.client.get(f"/api/runs/{run_id}").json()["summary"] == summary
            assert rows(it, run_id) == wanted
            assert it.client.get(f"/api/texts/{texts_id}").json()["count"] == 3
            refused = it.client.delete(f"/api/texts/{texts_id}")
            assert (refused.status_code, refused.json()["code"]) == (503, "read_only")
            it.signal(signal.SIGINT)
            it.wait()
        assert content(folder) == before
