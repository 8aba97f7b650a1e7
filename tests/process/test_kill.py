"""kill -9 at every append of a whole session: each time the next start and the same keys lead to the same end."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from sae_actor.demo import SAE_FOLDER
from sae_actor.domain.refs import import_id_of
from sae_actor.eventlog.offline import verify_folder

from .harness import Process

PATH = str(SAE_FOLDER.resolve())
SAE_ID = import_id_of(PATH)
EDIT = {"feature": 584, "strength": 85.0, "exclude": ["sink"]}
SCRIPT: list[tuple[str, dict[str, Any]]] = [
    ("load", {"type": "LoadModel", "model": "tiny"}),
    ("import", {"type": "Import", "path": PATH}),
    ("attach", {"type": "Attach", "sae_id": SAE_ID}),
    ("steer", {"type": "Steer", "sae_id": SAE_ID, "features": [EDIT]}),
    ("detach", {"type": "Detach", "sae_id": SAE_ID}),
]
APPENDS = 10
"""ActorStarted, two for each command with an effect (load, import, attach, detach), one for Steer."""


def test_the_script_takes_so_many_appends(tmp_path: Path) -> None:
    with Process(tmp_path / "data") as process:
        for key, command in SCRIPT:
            assert process.send(key, **command)["status"] == "completed"
        types = [event["type"] for event in process.events()]
    assert len(types) == APPENDS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(1, APPENDS + 1))
@pytest.mark.parametrize("when", ["before", "after"])
def test_any_death_is_recovered_from(tmp_path: Path, when: str, number: int) -> None:
    data = tmp_path / "data"
    done = _run_until_death(data, when, number)
    with Process(data) as process:
        process.until_ready()
        _same_as_acknowledged(process, done)
        for key, command in SCRIPT:
            outcome = process.send(key, **command)
            assert outcome["status"] == "completed", outcome
            if key in done:
                assert outcome["command_id"] == done[key]["command_id"]
                assert outcome["position"] == done[key]["position"]
        events = process.events()
        assert process.client.get("/api/saes/attachment").json()["attachments"] == []
        assert process.client.get("/api/log/verify").json()["ok"]
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    types = [event["type"] for event in events if not event["data"].get("restored")]
    for once in ("ModelLoaded", "DownloadCompleted", "SaeAttached", "SteeringChanged", "SaeDetached"):
        assert types.count(once) == 1, (once, types)
    verification = asyncio.run(verify_folder(data))
    assert verification.ok, verification


def _run_until_death(data: Path, when: str, number: int) -> dict[str, dict[str, Any]]:
    """The outcomes that were given out before the process died."""
    done: dict[str, dict[str, Any]] = {}
    with Process(data, "--kill", when, str(number)) as process:
        if process.url:
            try:
                for key, command in SCRIPT:
                    done[key] = process.send(key, **command)
            except httpx.TransportError:
                pass
        assert process.wait() == -signal.SIGKILL
    return done


def _same_as_acknowledged(process: Process, done: dict[str, dict[str, Any]]) -> None:
    """What was said to be so is so again, before anything is sent."""
    attachment = process.client.get("/api/saes/attachment").json()
    if "steer" in done and "detach" not in done and attachment["is_attached"]:
        assert attachment["sae_id"] == SAE_ID
        assert [edit["feature"] for edit in attachment["steering"]] == [584]
    elif "attach" in done and "detach" not in done:
        events = {event["type"] for event in process.events()}
        assert attachment["is_attached"] or "DetachRequested" in events


def test_an_effect_that_kills_three_times_is_given_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data, "--die-loading") as process:
        with pytest.raises(httpx.TransportError):
            process.send("load", type="LoadModel", model="tiny")
        assert process.wait() == -signal.SIGKILL
    for _ in range(2):
        with Process(data, "--die-loading") as process:
            assert process.wait() == -signal.SIGKILL
    with Process(data, "--die-loading") as process:
        process.until_ready()
        assert process.client.get("/api/model").json()["status"] == "error"
        outcome = process.send("load", type="LoadModel", model="tiny")
        assert outcome["status"] == "failed"
        assert "3 times" in outcome["error"]["detail"]
        attempts = [e["data"]["attempt"] for e in process.events() if e["type"] == "EffectInterrupted"]
    assert attempts == [1, 2, 3]


def test_a_graceful_stop_is_not_a_death(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for _ in range(4):
        with Process(data, "--load-seconds", "30") as process:
            process.client.post("/api/commands", json={"type": "LoadModel", "model": "tiny"})
            process.signal(signal.SIGTERM)
            assert process.wait(5) == 0
    with Process(data) as process:
        process.until_ready()
        assert process.client.get("/api/model").json()["status"] == "loaded"
        assert not any(event["type"] == "EffectInterrupted" for event in process.events())


def test_a_second_service_on_the_log_is_told_who_holds_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data) as first, Process(data) as second:
        assert second.wait() == 75
        assert str(first.pid) in second.stderr.read_text()
        assert first.client.get("/health").status_code == 200


def test_a_port_in_use(tmp_path: Path) -> None:
    with Process(tmp_path / "one") as first:
        port = first.url.rsplit(":", 1)[-1]
        with Process(tmp_path / "two", "--port", port) as second:
            assert second.wait() == 69
            assert port in second.stderr.read_text()
        assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_open_streams_in_time(tmp_path: Path, number: int) -> None:
    with Process(tmp_path / "data") as process, process.client.stream("GET", "/api/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        process.signal(number)
        assert "event: bye" in list(lines)
        assert process.wait(5) == 0
