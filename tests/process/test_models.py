"""A model of the hub through the service with the real engine: progress, cancel, commit, and what is not fetched."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from sae_actor.demo import SAE_FOLDER
from tests.engine.tiny import save_tiny_model
from tests.fakes.hub_server import HubServer

from .downloading import Listening, children, downloading
from .harness import Process, until

MODEL = "org/tiny-llama"
WEIGHTS = "model.safetensors"


def send(process: Process, **command: str) -> None:
    """Without waiting for the outcome."""
    assert process.client.post("/api/commands", json=command).status_code == 202


def status(process: Process) -> str | None:
    answer: str | None = process.client.get("/api/model").json()["status"]
    return answer


@pytest.mark.timeout(60)
def test_a_model_of_the_hub(server: HubServer, data: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')".encode()
    extra = {"modeling_own.py": code, "pytorch_model.bin": b"x", "onnx/model.onnx": b"x", "README.md": b"x"}
    commit = server.publish(MODEL, {**files, **extra})
    size = len(files[WEIGHTS])
    with downloading(server, data, "--torch", "--quick") as process:
        send(process, type="LoadModel", model=f"{tmp_path}/nothing")
        until(lambda: status(process) == "error", 30)  # torch is imported by now

        for on, fault in (("info", {"hang": 30.0}), ("store", {"rate": size // 4})):
            server.fault(on, **fault)
            send(process, type="LoadModel", model=MODEL)
            until(lambda on=on: bool(server.asked(on)))  # type: ignore[misc]
            time.sleep(0.3)
            assert len(children(process)) == 1
            began = time.monotonic()
            assert process.send(f"unload-{on}", type="UnloadModel")["status"] == "completed"
            until(lambda: not children(process), 2)
            assert time.monotonic() - began < 2
            time.sleep(0.2)  # for the server's socket to notice
            sent = len(server.asked()), server.sent()
            time.sleep(0.2)
            assert (len(server.asked()), server.sent()) == sent
            server.heal()

        server.fault("store", rate=size)
        with Listening(process) as listening:
            outcome = process.send("load", type="LoadModel", model=MODEL)
            assert outcome["status"] == "completed", outcome
            until(lambda: "ModelLoaded" in listening.text)
        facts = process.client.get("/api/model").json()
        assert (facts["commit"], facts["status"], facts["model_id"]) == (commit, "loaded", MODEL)
        told = listening.told("model_progress")
        assert {"fetching", "checking", "loading"} <= {each["stage"] for each in told}
        fetching = [each for each in told if each["stage"] == "fetching" and each.get("phase") == "body"]
        assert fetching
        assert all(each["bytes"] <= each["total_bytes"] for each in fetching)
        asked = {name for name in extra for each in server.asked("head", "get", "store") if name in each.target}
        assert asked == set()
        assert process.send("text", type="UnloadModel")["status"] == "completed"
        before = len(server.asked())
        assert process.send("again", type="LoadModel", model=MODEL)["status"] == "completed"
        assert len(server.asked()) == before, "it is in the cache"
    assert not canary.exists()


@pytest.mark.timeout(60)
def test_ready_waits_for_the_model_of_the_settings(data: Path) -> None:
    with Process(data, "--load-seconds", "0.5", environment={"SAE_ACTOR_MODEL_ID": "org/model"}) as process:
        while (answer := process.client.get("/ready")).status_code == 503:
            assert answer.json()["reasons"]
            time.sleep(0.01)
        assert status(process) == "loaded"


def asking(**fields: str) -> dict[str, str]:
    return {"SAE_ACTOR_MODEL_ID": "tiny"} | {f"SAE_ACTOR_MODEL_{name.upper()}": each for name, each in fields.items()}


def test_a_model_is_loaded_again_as_the_settings_ask_for_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for fields, loads in (({"dtype": "float32"}, 1), ({"dtype": "bfloat16"}, 2), ({"dtype": "bfloat16"}, 2)):
        with Process(data, environment=asking(**fields)) as process:
            process.until_ready()
            assert process.client.get("/api/model").json()["dtype"] == fields["dtype"]
            types = [event["type"] for event in process.events()]
            assert types.count("ModelLoadRequested") == loads
            process.signal(signal.SIGTERM)
            assert process.wait() == 0


def test_not_while_an_sae_is_attached_to_the_one_of_the_log(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data, environment=asking(dtype="float32")) as process:
        process.until_ready()
        imported = process.send("i", type="Import", path=str(SAE_FOLDER))
        sae_id = imported["events"][0]["data"]["sae_id"]
        assert process.send("a", type="Attach", sae_id=sae_id)["status"] == "completed"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    there = {"dtype": "float32", "revision": "main", "device": "auto"}
    for name, value in (("dtype", "bfloat16"), ("revision", "v2"), ("device", "cpu")):
        words = tmp_path / name
        with Process(data, environment=asking(**{name: value}), listens=False, stderr=words) as process:
            assert process.wait() == 78
        said = words.read_text()
        assert f"{name} {value}" in said
        assert f"{name} {there[name]}" in said
        assert sae_id in said
    reading = ["sae_actor", "serve", "--port", "0", "--data-dir", str(data), "--read-only"]
    with Process(data, command=reading, environment=asking(dtype="bfloat16")) as process:
        assert process.client.get("/api/model").json()["status"] == "loaded"
    # What is not said is no wish.
    with Process(data, environment=asking()) as process:
        process.until_ready()
        assert process.client.get("/api/model").json()["dtype"] == "float32"
        assert process.client.get("/api/saes/attachment").json()["sae_id"] == sae_id
