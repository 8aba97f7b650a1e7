"""Row 62 in a real process: a text that hangs, or was asked for without end, is given up at its deadline."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from .harness import Process
from .test_kill import SAE_ID
from .test_stream_readers import attached

HANGS, SLOW = "3600", "0.05"


@pytest.mark.parametrize("step", [HANGS, SLOW])
def test_row_62_a_text_that_does_not_end(tmp_path: Path, step: str) -> None:
    environment = {"SAE_ACTOR_ENGINE_DEADLINE_SECONDS": "0.7", "SAE_ACTOR_ENGINE_MAX_RUNNING": "1"}
    with Process(tmp_path / "data", "--step-seconds", step, environment=environment) as process:
        attached(process)
        ask = {"prompt": "hi", "max_tokens": 200, "temperature": 0}
        for _ in range(2):
            began = time.monotonic()
            answer = process.client.post("/v1/completions", json=ask)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert 0.7 <= time.monotonic() - began < 5
        with process.client.stream("POST", "/v1/completions", json={**ask, "stream": True}) as stream:
            began = time.monotonic()
            steer = process.client.put(f"/api/saes/{SAE_ID}/steering", json={"features": []})
            assert (steer.status_code, time.monotonic() - began < 0.6) == (200, True), (
                "the actor does not wait for texts"
            )
            text = stream.read().decode()
        if stream.status_code == 200:
            assert (
                json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"]
                == "deadline_exceeded"
            )
        else:
            assert (stream.status_code, json.loads(text)["error"]["code"]) == (504, "deadline_exceeded")
        ends = [event["data"] for event in process.events() if event["type"] == "GenerationFinished"]
        assert [(end["finish_reason"], end["error"]["code"]) for end in ends] == [("error", "deadline_exceeded")] * 3
        assert process.client.get("/api/state").json()["generations"] == []
        assert process.client.post(f"/api/saes/{SAE_ID}/detach").status_code == 200, "nothing holds the SAE any more"
