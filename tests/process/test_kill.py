"""kill -9 at every append of a whole session: each time the next start and the same keys lead to the same end."""

from __future__ import annotations

import asyncio
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sae_actor.demo import SAE_FOLDER
from sae_actor.domain.weights import import_id_of
from sae_actor.eventlog import verify_folder
from sae_actor.hub.digests import sha256_of

from .harness import Process, until

PATH = str(SAE_FOLDER.resolve())
DIGEST = sha256_of(SAE_FOLDER / "sae_weights.safetensors")
SAE_ID = import_id_of(PATH, digest=DIGEST)
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


OF_THEIR_OWN = {("after", 6), ("before", 7), ("after", 7)}
"""Rows 3 to 5, below."""
DEATHS = [(when, number) for when in ("before", "after") for number in range(1, APPENDS + 1)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("when", "number"), [death for death in DEATHS if death not in OF_THEIR_OWN])
def test_any_death_is_recovered_from(tmp_path: Path, when: str, number: int) -> None:
    """Rows 1 to 5: before and after every append of a session, the retried keys come to the same end."""
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


def after_death(data: Path, when: str, number: int) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """What was acknowledged before, and the events once the next start has come to rest; nothing is sent to it."""
    done = _run_until_death(data, when, number)
    with Process(data) as process:
        process.until_ready()
        until(lambda: process.client.get("/api/state").json()["commands"] == [])
        return done, process.events()


@pytest.mark.parametrize(("when", "number"), [("after", 6), ("before", 7)], ids=["row 3", "row 4"])
def test_rows_3_and_4_an_attach_cut_off_is_done_again_and_ends_once(tmp_path: Path, when: str, number: int) -> None:
    """Row 3: killed right after the intent. Row 4: killed when the hook was in, before that was on record."""
    done, events = after_death(tmp_path / "data", when, number)
    assert "attach" not in done
    before, later = events[:6], events[6:]
    assert before[-1]["type"] == "AttachRequested"
    assert [event["type"] for event in later] == ["ActorStarted", "EffectInterrupted", "ModelLoaded", "SaeAttached"]
    cut, attached = later[1]["data"], later[3]
    assert (cut["effect"], cut["attempt"], cut["request_position"]) == ("attach", 1, before[-1]["position"])
    assert attached["data"]["request_position"] == before[-1]["position"]
    assert attached["command_id"] == before[-1]["command_id"]
    assert not attached["data"]["restored"], "it is the outcome of the command, not of the restart"


def test_row_5_what_was_done_and_not_answered_is_answered_to_the_same_key(tmp_path: Path) -> None:
    """Row 5: killed when SaeAttached was durable and the answer was not sent."""
    done = _run_until_death(tmp_path / "data", "after", 7)
    assert "attach" not in done
    with Process(tmp_path / "data") as process:
        process.until_ready()
        outcome = process.send("attach", **dict(SCRIPT)["attach"])
        events = process.events()
    assert outcome["status"] == "completed"
    assert [event["position"] for event in outcome["events"]] == [6, 7]
    assert outcome["events"] == events[5:7]
    assert [e["type"] for e in events if not e["data"].get("restored")].count("SaeAttached") == 1


TWO = {"SAE_ACTOR_GPU_MAX_ATTACHMENTS": "2"}


@pytest.mark.parametrize(("when", "number"), [("before", 3), ("after", 3)])
def test_row_8_killed_while_it_is_brought_back(tmp_path: Path, when: str, number: int) -> None:
    """The start after the next one goes on; what was attached comes back in the order of the log."""
    data = tmp_path / "data"
    second = tmp_path / "saes" / "second"
    shutil.copytree(SAE_FOLDER, second)
    roots = ("--import-root", str(SAE_FOLDER.parent), "--import-root", str(second.parent))
    ids = [import_id_of(str(second.resolve()), digest=DIGEST), SAE_ID]
    with Process(data, *roots, environment=TWO) as process:
        for key, command in SCRIPT[:2]:
            process.send(key, **command)
        process.send("second", type="Import", path=str(second.resolve()))
        for sae_id in ids:
            assert process.send(f"attach-{sae_id}", type="Attach", sae_id=sae_id)["status"] == "completed"
        process.send("steer", **dict(SCRIPT)["steer"])
        process.signal(signal.SIGKILL)
        process.wait()
    # 1 ActorStarted, 2 ModelLoaded, 3 and 4 the SAEs.
    with Process(data, *roots, "--kill", when, str(number), environment=TWO) as process:
        assert process.wait() == -signal.SIGKILL
    with Process(data, *roots, environment=TWO) as process:
        process.until_ready()
        attachment = process.client.get("/api/saes/attachment").json()
        events = process.events()
        assert process.client.get("/api/log/verify").json()["ok"]
    assert [each["sae_id"] for each in attachment["attachments"]] == ids
    assert [edit["feature"] for edit in attachment["attachments"][1]["steering"]] == [584]
    last_start = max(i for i, event in enumerate(events) if event["type"] == "ActorStarted")
    restored = [e["data"]["sae_id"] for e in events[last_start:] if e["type"] == "SaeAttached"]
    assert restored == ids


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


def test_row_61a_an_effect_that_kills_three_times_is_given_up(tmp_path: Path) -> None:
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
    """Row 10, the first signal: in order, and within five seconds."""
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


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_row_10_a_second_signal_does_not_wait(tmp_path: Path, numbers: tuple[int, int]) -> None:
    """What the first signal waits for never comes, so it is the second that ends the process.

    Whoever waited was answered by the first; the load is taken up again after both.
    """
    data = tmp_path / "data"
    load = {"type": "LoadModel", "model": "tiny"}
    with Process(data, "--load-seconds", "3000", "--never-ends") as process, ThreadPoolExecutor(1) as caller:
        asked = caller.submit(
            process.client.post, "/api/commands", json=load, headers={"Prefer": "wait=300", "Idempotency-Key": "l"}
        )
        until(lambda: httpx.get(f"{process.url}/api/state", verify=False).json()["commands"] != [])
        process.signal(numbers[0])
        assert process.line() == "closing"
        assert asked.result().status_code in (202, 503)
        process.signal(numbers[1])
        assert process.wait() == 128 + numbers[1]
    with Process(data) as process:
        assert process.send("l", **load)["status"] == "completed"
        assert process.client.get("/api/log/verify").json()["ok"]


def test_row_10_two_signals_at_once(tmp_path: Path) -> None:
    """The second does not wait for what the first has begun."""
    with Process(tmp_path / "data", "--load-seconds", "3000", "--never-ends") as process:
        process.client.post("/api/commands", json={"type": "LoadModel", "model": "tiny"})
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)
        assert process.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    with Process(tmp_path / "data") as process:
        process.until_ready()
        assert process.client.get("/api/model").json()["status"] == "loaded"
        assert process.client.get("/api/log/verify").json()["ok"]


def test_a_second_service_on_the_log_is_told_who_holds_it(tmp_path: Path) -> None:
    """Row 19, one after the other."""
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
