"""`force`: swapped when verified; what is attached keeps running, and a restart says what became of it."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files

from .downloading import REPOSITORY, SAE_ID, downloading, start, status_of, terminal
from .harness import Process, until

D_IN = 576
"""Width of the model in `launch`."""
WEIGHTS = "sae_weights.safetensors"


def sha256(process: Process) -> str:
    files = process.client.get(f"/api/saes/{SAE_ID}").json()["files"]
    return str(next(file["sha256"] for file in files if file["path"] == WEIGHTS))


def steered(process: Process) -> str:
    """A text under what is attached; the service refuses it where that is not in place."""
    answer = process.client.post(
        "/v1/completions", json={"model": "default", "prompt": "a", "max_tokens": 4, "temperature": 0}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_an_attached_sae_keeps_running_while_its_files_are_replaced(server: HubServer, data: Path) -> None:
    old = server.publish(REPOSITORY, sae_files(d_in=D_IN, d_sae=512, seed=1))
    with downloading(server, data, "--quick") as process:
        assert process.send("load", type="LoadModel", model="tiny")["status"] == "completed"
        start(process)
        until(lambda: status_of(process) == "cached")
        assert process.send("attach", type="Attach", sae_id=SAE_ID)["status"] == "completed"
        assert process.send(
            "steer", type="Steer", sae_id=SAE_ID, features=[{"feature": 3, "strength": 9.0}]
        )["status"] == "completed"  # fmt: skip
        text, before = steered(process), sha256(process)

        server.publish(REPOSITORY, sae_files(d_in=D_IN, d_sae=512, seed=2))
        server.fault("store", corrupt="flip")
        start(process, force=True)
        until(lambda: len(terminal(process)) == 2)
        assert terminal(process)[-1] == "DownloadFailed"
        assert sha256(process) == before, "what could not be verified replaces nothing"
        assert steered(process) == text

        server.heal()
        server.fault("store", rate=1_000_000)
        start(process, force=True)
        until(lambda: bool(server.asked("store")[2:]))
        assert sha256(process) == before
        assert steered(process) == text
        until(lambda: len(terminal(process)) == 3)
        assert terminal(process)[-1] == "DownloadCompleted"
        record = process.client.get(f"/api/saes/{SAE_ID}").json()
        assert (record["status"], record["commit"] != old) == ("attached", True)
        assert sha256(process) != before
        assert steered(process) == text, "it runs on what it was attached with"
        assert process.client.get("/api/saes/attachment").json()["is_attached"]
    with downloading(server, data, "--quick") as process:
        process.until_ready()
        (lost,) = process.client.get("/ready").json()["degraded"]
        assert lost["sae_id"] == SAE_ID
        assert "replaced since it was attached" in lost["error"]["detail"]
        refused = process.client.post("/v1/completions", json={"model": "default", "prompt": "a", "max_tokens": 1})
        assert refused.status_code == 503
        assert process.send("again", type="Attach", sae_id=SAE_ID)["status"] == "completed"
        assert steered(process)
