"""`index.db` of a real service: kept up behind its back, whole after a kill, missing without harm, never in the way."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_actor.eventlog.index.tables import read_about
from tests.cli.conftest import Ran, command
from tests.eventlog.making import content

from .harness import Process, until
from .test_kill import EDIT, SAE_ID, SCRIPT

__all__ = ["command"]

TAG = "ticket 7"


def lived(process: Process) -> list[str]:
    """Texts under steering that changes; their ids."""
    for key, each in SCRIPT[:4]:
        assert process.send(key, **each)["status"] == "completed"
    made = []
    for number in range(30):
        body = {"features": [{**EDIT, "strength": float(number)}]}
        assert process.client.put(f"/api/saes/{SAE_ID}/steering", json=body).status_code == 200
        asked = {"prompt": "a", "max_tokens": 2, "sae": {"tag": TAG if number % 10 == 3 else f"other {number}"}}
        made.append(process.client.post("/v1/completions", json=asked).json()["sae"]["generation_id"])
    return made


def entered(data: Path) -> int:
    """How far the index goes."""
    with contextlib.closing(sqlite3.connect(f"file:{data / 'index.db'}?mode=ro", uri=True)) as database:
        return read_about(database).position


def head(process: Process) -> int:
    position: int = process.client.get("/api/log", params={"limit": 1}).json()["head"]["position"]
    return position


def answers(process: Process, ids: list[str]) -> list[Any]:
    get = process.client.get
    found = [
        get("/api/generations", params={"tag": TAG}),
        get("/api/generations", params={"after": 20, "limit": 7}),
        *(get(f"/api/generations/{each}") for each in ids[::7]),
        get("/api/generations/nobody"),
        get("/api/log", params={"types": "SaeAttached,ModelLoaded", "limit": 2}),
        get("/api/log", params={"types": "SteeringChanged", "sae_id": SAE_ID}),
    ]
    answered = [answer.json() for answer in found]
    for each in answered:
        each.pop("head", None)
    answered.append(
        [view["generation_id"] for view in get("/api/log/explain", params={"of": TAG}).json()["generations"]]
    )
    return answered


def test_a_service_answers_the_same_whatever_became_of_it(tmp_path: Path, command: Callable[..., Ran]) -> None:
    data = tmp_path / "data"
    with Process(data) as process:
        ids = lived(process)
        expected = answers(process, ids)
        assert expected[-1] == [ids[3], ids[13], ids[23]]
        assert [view["intervention"][0]["steering"][0]["strength"] for view in expected[0]["generations"]] == [
            3,
            13,
            23,
        ]
        assert expected[2]["intervention"][0]["steering"][0]["strength"] == 0
        until(lambda: entered(data) == head(process))
        assert answers(process, ids) == expected
        assert stat.S_IMODE((data / "index.db").stat().st_mode) == 0o600
        process.signal(signal.SIGKILL)
        process.wait()
    shutil.copytree(data, tmp_path / "changed")
    (tmp_path / "changed" / "index.db").write_bytes(b"no database")
    shutil.copytree(data, tmp_path / "without")
    for path in (tmp_path / "without").glob("index.db*"):
        path.unlink()
    for folder in (data, tmp_path / "changed", tmp_path / "without"):
        with Process(folder) as process:
            process.until_ready()
            assert answers(process, ids) == expected
            until(lambda folder=folder, process=process: entered(folder) == head(process))  # type: ignore[misc]
            assert answers(process, ids) == expected
            process.signal(signal.SIGINT)
            assert process.wait() == 0
        before = content(folder)
        assert [name for name in before if "index" in name] == ["index.db"]
        told = command("log", "explain", TAG, "--json", "--data-dir", str(folder))
        assert [json.loads(line)["generation_id"] for line in told.out.splitlines()] == expected[-1]
        assert content(folder) == before
    for folder in (data, tmp_path / "without"):
        (tmp_path / "without" / "index.db").unlink(missing_ok=True)
        before = content(folder)
        reading = ["sae_actor", "serve", "--port", "0", "--data-dir", str(folder), "--read-only"]
        with Process(folder, command=reading) as process:
            until(lambda process=process: process.client.get("/health").status_code == 200)  # type: ignore[misc]
            assert answers(process, ids)[-1] == expected[-1]
            assert answers(process, ids)[5:7] == expected[5:7]
            process.signal(signal.SIGINT)
            process.wait()
        assert content(folder) == before
