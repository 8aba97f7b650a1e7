"""A backup of a service that is being used, restored elsewhere: everything comes up, and the fork is on record."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sae_actor.demo import SAE_FOLDER
from tests.cli.conftest import Ran, command
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files

from .downloading import REPOSITORY, SAE_ID, downloading, files_of
from .harness import Process, until
from .test_kill import EDIT

__all__ = ["command"]

Command = Callable[..., Ran]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an SAE that is on one machine only."""
    shutil.copytree(SAE_FOLDER, tmp_path / "roots" / "mine")
    return tmp_path / "roots"


@contextlib.contextmanager
def served(data: Path, root: Path) -> Iterator[Process]:
    with Process(data, "--import-root", str(root), "--step-seconds", "0.001") as process:
        yield process


def stopped(process: Process) -> None:
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def prepared(process: Process, root: Path) -> str:
    """A model, an SAE of this machine attached and steered, vectors; the SAE's id."""
    assert process.send("load", type="LoadModel", model="tiny")["status"] == "completed"
    sae_id: str = process.send("import", type="Import", path=str(root / "mine"))["events"][0]["data"]["sae_id"]
    assert process.send("attach", type="Attach", sae_id=sae_id)["status"] == "completed"
    assert process.send("steer", type="Steer", sae_id=sae_id, features=[EDIT])["status"] == "completed"
    body = {"name": "mine", "hook_point": {"kind": "resid_post", "layer": 3}, "rows": [[0.5] * 576]}
    assert process.client.post("/api/vectors", json=body).status_code == 201
    return sae_id


@contextlib.contextmanager
def under_load(url: str, sae_id: str) -> Iterator[list[int]]:
    """Texts and commands without a pause; the positions that were answered so far."""
    end, answered, failures = threading.Event(), [0], []

    def work(number: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not end.is_set():
                if number:
                    text = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
                    failures.extend([] if text.status_code == 200 else [text.text])
                    answered.append(text.json()["sae"]["position"])
                else:
                    steered = client.put(f"/api/saes/{sae_id}/steering", json={"features": [EDIT]})
                    failures.extend([] if steered.status_code == 200 else [steered.text])
                    answered.append(steered.json()["position"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert failures == []


def rows(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT n FROM rows").fetchall()


def backed_up(data: Path, root: Path, file: Path, command: Command) -> tuple[str, dict[str, Any]]:
    """A backup under load; the id of the attached SAE, and what the command said."""
    with served(data, root) as process:
        sae_id = prepared(process, root)
        (data / "labels").mkdir()
        (data / "labels" / f"{'ab' * 32}.ndjson").write_text('{"feature":1,"label":"one"}\n')
        (data / "runs").mkdir()
        with contextlib.closing(sqlite3.connect(data / "runs" / "r.db")) as run:
            # As a run leaves it in the middle: what it wrote is in the write-ahead log.
            run.execute("PRAGMA journal_mode = WAL").fetchall()
            run.execute("CREATE TABLE rows (n)")
            run.execute("INSERT INTO rows VALUES (7)")
            run.commit()
            with under_load(process.url, sae_id) as answered:
                while len(answered) < 30:
                    process.client.get("/health")
                least = max(answered)
                ran = command("backup", str(file), "--saes", "--json", "--url", process.url)
                most = process.client.get("/api/log", params={"limit": 1}).json()["head"]["position"]
        assert ran.code == 0, ran
        told: dict[str, Any] = json.loads(ran.out)
        # Everything that was answered before it is in it, and nothing after it.
        assert least <= told["head"]["position"] <= most
        assert (told["witnessed"], told["model"]["model"]) == (True, "tiny")
        assert {sae["sae_id"]: sae["included"] for sae in told["saes"]}[sae_id]
        assert command("log", "state", "--data-dir", str(data)).code == 75
        assert process.client.get("/api/log/verify").json()["ok"]
        assert not list(data.glob("backup.*")), "what was set aside is gone"
        stopped(process)
    return sae_id, told


def test_row_78_the_database_copied_by_itself_is_no_backup(tmp_path: Path, command: Command) -> None:
    """Its newest events are in the write-ahead log; only the service's own copy has them all."""
    data, alone, both = tmp_path / "data", tmp_path / "alone", tmp_path / "both"
    with Process(data) as process:
        for number in range(30):
            process.client.post("/api/commands", json={"type": "Detach", "sae_id": f"none-{number}"})
        head = process.client.get("/api/log/verify").json()["head"]
        for folder in (alone, both):
            folder.mkdir()
            shutil.copy(data / "events.db", folder)
        shutil.copy(data / "head.checkpoint", both)
        assert command("backup", str(tmp_path / "b.tar"), "--url", process.url).code == 0
        noted = ("--head", f"{head['position']}:{head['hash']}")
    ran = command("log", "verify", "--json", "--data-dir", str(alone))
    told = json.loads(ran.out)
    assert (ran.code, told["ok"], told["unproven"]) == (65, False, True)
    assert told["events"] < head["position"], "its tail is lost"
    assert command("log", "verify", "--data-dir", str(alone), *noted).code == 65
    ran = command("log", "verify", "--data-dir", str(both))
    assert (ran.code, f"recorded event {head['position']}" in ran.out) == (65, True)
    assert command("restore", str(tmp_path / "b.tar"), "--data-dir", str(tmp_path / "new")).code == 0
    assert command("log", "verify", "--data-dir", str(tmp_path / "new"), *noted).code == 0


def test_row_79_who_opens_the_database_is_told_of_the_backup(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    with Process(data) as process:
        for verb in ("verify", "show", "export"):
            words = [str(tmp_path / "x")] if verb == "export" else []
            ran = command("log", verb, *words, "--data-dir", str(data))
            assert ran.code == 75
            assert "sae-actor backup" in ran.err
        ran = command("backup", str(tmp_path / "b.tar"), "--data-dir", str(data))
        assert (ran.code, "sae-actor backup" in ran.err) == (75, True)
        # SQLite's own tools are refused at once.
        with (
            contextlib.closing(sqlite3.connect(data / "events.db", timeout=0)) as foreign,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            foreign.execute("SELECT count(*) FROM events")
        assert command("backup", str(tmp_path / "b.tar"), "--url", process.url).code == 0
        assert process.client.get("/api/log/verify").json()["ok"]


def test_a_client_that_leaves_takes_its_backup_along(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data) as process:
        (data / "vectors" / "v-1").mkdir(parents=True)
        (data / "vectors" / "v-1" / "vectors.safetensors").write_bytes(bytes(64 << 20))
        with process.client.stream("GET", "/api/log/backup") as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/x-tar"
            mark = process.client.get("/api/log").json()["head"]["position"]
            assert answer.headers["content-disposition"].endswith(f'-{mark}.tar"')
            parts = answer.iter_raw()  # kept: httpx hangs up where its iterator is collected
            next(parts)
            assert list(data.glob("backup.*"))
            other = process.client.get("/api/log/backup")
            assert (other.status_code, other.json()["code"]) == (503, "not_ready")
            assert other.headers["retry-after"] == "5"
        until(lambda: not list(data.glob("backup.*")))
        until(lambda: process.client.get("/api/log/backup").status_code == 200)
        for wrong in ("yes", "", "2"):
            assert process.client.get("/api/log/backup", params={"saes": wrong}).status_code == 400


def test_a_stop_does_not_wait_for_a_client_that_dawdles(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data) as process:
        (data / "vectors").mkdir(parents=True)
        (data / "vectors" / "large").write_bytes(bytes(64 << 20))
        with process.client.stream("GET", "/api/log/backup") as answer:
            parts = answer.iter_raw()
            next(parts)
            process.signal(signal.SIGINT)
            assert process.wait(15) == 0
            with pytest.raises(httpx.TransportError):  # it does not look like a whole one
                for _ in parts:
                    pass
    assert not list(data.glob("backup.*"))


def test_what_a_killed_service_had_set_aside_goes_at_the_next_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data) as process:
        (data / "vectors").mkdir(parents=True)
        (data / "vectors" / "large").write_bytes(bytes(64 << 20))
        with process.client.stream("GET", "/api/log/backup") as answer:
            parts = answer.iter_raw()  # kept, as above: the service dies with its client still there
            next(parts)
            process.signal(signal.SIGKILL)
            process.wait()
    assert list(data.glob("backup.*"))
    with Process(data):
        assert not list(data.glob("backup.*"))
        assert (data / "vectors" / "large").stat().st_nlink == 1


@pytest.mark.timeout(120)
def test_saes_of_a_hub_come_along_with_their_place_in_its_cache(
    server: HubServer, tmp_path: Path, command: Command
) -> None:
    data, file, there = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "there"
    server.publish(REPOSITORY, sae_files(d_in=576))
    with downloading(server, data) as process:
        assert process.send("load", type="LoadModel", model="tiny")["status"] == "completed"
        assert process.send("fetch", type="Download", repository_id=REPOSITORY)["status"] == "completed"
        assert process.send("attach", type="Attach", sae_id=SAE_ID)["status"] == "completed"
        assert process.send("steer", type="Steer", sae_id=SAE_ID, features=[{**EDIT, "feature": 3}])
        stopped(process)
    assert command("backup", str(file), "--saes", "--data-dir", str(data)).code == 0
    bare = command("backup", str(tmp_path / "bare.tar"), "--data-dir", str(data))
    assert bare.code == 0
    assert file.stat().st_size > (tmp_path / "bare.tar").stat().st_size
    assert command("restore", str(file), "--data-dir", str(there)).code == 0
    assert files_of(there) == files_of(data)
    ran = command("restore", str(tmp_path / "bare.tar"), "--data-dir", str(tmp_path / "bare"))
    assert f"not in the backup: the files of {SAE_ID}, from {REPOSITORY} at " in ran.out
    asked = len(server.requests)
    with downloading(server, there) as process:
        process.until_ready()
        attachment = process.client.get("/api/saes/attachment").json()
        assert (attachment["sae_id"], attachment["steering"][0]["feature"]) == (SAE_ID, 3)
        assert len(server.requests) == asked, "nothing is fetched"
        process.client.post(f"/api/saes/{SAE_ID}/detach")
        deleted = process.client.delete(f"/api/saes/{SAE_ID}").json()
        assert deleted["freed_bytes"] > 576 * 32 * 4
        assert files_of(there) == {}
    with downloading(server, tmp_path / "bare") as process:
        process.until_ready()
        degraded = process.client.get("/ready").json()
        assert SAE_ID in json.dumps(degraded["degraded"])


@pytest.mark.timeout(240)
def test_a_backup_under_load_restored_elsewhere_comes_up(tmp_path: Path, root: Path, command: Command) -> None:
    data, file, there = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "there"
    sae_id, told = backed_up(data, root, file, command)
    head = f"{told['head']['position']}:{told['head']['hash']}"
    # What it was made of is not on that machine.
    shutil.rmtree(root / "mine")
    shutil.rmtree(data / "vectors")
    ran = command("restore", str(file), "--data-dir", str(there))
    assert ran == (0, f"{told['events']} events restored into {there}, head {head}\n", "")
    assert sorted(path.name for path in there.iterdir()) == [
        "events.db", "events.lock", "events.origin", "head.checkpoint", "imports", "labels", "runs", "vectors",
    ]  # fmt: skip
    assert rows(there / "runs" / "r.db") == [(7,)]
    verified = json.loads(command("log", "verify", "--json", "--head", head, "--data-dir", str(there)).out)
    assert (verified["ok"], verified["head"]) == (True, told["head"])
    with served(there, root) as process:
        process.until_ready()
        attachment = process.client.get("/api/saes/attachment").json()
        assert (attachment["sae_id"], attachment["steering"][0]["feature"]) == (sae_id, EDIT["feature"])
        text = process.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).json()
        assert text["sae"]["receipt"]["tokens_edited"] > 0
        vectors = next(sae for sae in process.client.get("/api/saes").json()["saes"] if sae["format"] == "vectors")
        moved = process.send("move", type="Attach", sae_id=vectors["sae_id"], replace=True)
        assert moved["status"] == "completed", moved
        event = next(event for event in process.events() if event["type"] == "LogForked")
        assert event["position"] == told["head"]["position"] + 1
        assert (event["data"]["reason"], event["data"]["parent_head"]) == ("restored", told["head"])
        assert process.client.get("/api/log/verify").json()["ok"]
        # Of the import that a restore brought the files go with its record.
        assert process.send("delete", type="Delete", sae_id=sae_id)["status"] == "completed"
        assert not (there / "imports" / sae_id).exists()
        stopped(process)
    compared = json.loads(command("log", "diff", "--json", "--other", str(there), "--data-dir", str(data)).out)
    assert compared["common"] == told["head"]
