"""SIGTERM while texts are made: they end as they would have, and whoever comes meanwhile is sent elsewhere."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from .harness import Process, until
from .test_kill import SCRIPT

WORDS = 12


def prepared(process: Process) -> None:
    for key, command in SCRIPT[:3]:
        assert process.send(key, **command)["status"] == "completed"


def texts(process: Process) -> tuple[int, int]:
    """Of the texts on record: begun, ended."""
    types = [event["type"] for event in process.events()]
    return types.count("GenerationStarted"), types.count("GenerationFinished")


def completion(process: Process, **fields: Any) -> httpx.Response:
    body = {"prompt": "hello world", "max_tokens": WORDS, "ignore_eos": True, **fields}
    return httpx.post(f"{process.url}/v1/completions", json=body, timeout=60)


def followed(process: Process, begun: threading.Event) -> str:
    with httpx.stream("GET", f"{process.url}/api/events", timeout=60) as stream:
        begun.set()
        return "".join(stream.iter_text())


def test_what_runs_ends_and_nothing_new_begins(tmp_path: Path) -> None:
    begun = threading.Event()
    with Process(tmp_path / "data", "--step-seconds", "0.3") as process, ThreadPoolExecutor(3) as clients:
        prepared(process)
        events = clients.submit(followed, process, begun)
        assert begun.wait(10)
        whole = clients.submit(completion, process)
        stream = clients.submit(completion, process, stream=True)
        until(lambda: texts(process) == (2, 0))
        process.signal(signal.SIGTERM)
        until(lambda: process.client.get("/ready").json().get("code") == "draining")

        assert process.client.get("/health").status_code == 200
        assert process.client.get("/api/state").status_code == 200
        for answer in (
            process.client.get("/ready"),
            process.client.post("/api/commands", json={"type": "UnloadModel"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) > 0
        refused = completion(process)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0

        answer = whole.result()
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == WORDS
        assert stream.result().text.rstrip().endswith("data: [DONE]")
        frames = [frame for frame in events.result().split("\n\n") if "event: " in frame]
        ends = [frame.partition("event: ")[2].splitlines()[0] for frame in frames if "checkpoint" not in frame]
        assert ends[-4:] == ["GenerationFinished", "GenerationFinished", "ActorStopped", "bye"]
        assert process.wait(10) == 0
    assert process.stderr.read_text() == ""


@pytest.mark.parametrize("unended", [False, True], ids=["all-end", "too-late"])
def test_two_hundred_streams_of_openais_client(tmp_path: Path, unended: bool) -> None:
    """Each ends with a reason of its own, or with an error that the client raises."""
    most, environment = 200, {"SAE_ACTOR_SERVER_DRAIN_SECONDS": "0.5" if unended else "60"}
    steps = "0.5" if unended else "0.05"
    with Process(tmp_path / "data", "--step-seconds", steps, environment=environment) as process:
        prepared(process)
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0, timeout=90)

        def read(_: int) -> str:
            begun = client.completions.create(
                model="default", prompt="hello", max_tokens=WORDS, stream=True, extra_body={"ignore_eos": True}
            )
            reasons = [chunk.choices[0].finish_reason for chunk in begun if chunk.choices]
            return str(reasons[-1])

        def outcome(number: int) -> str:
            try:
                return read(number)
            except openai.APIError as error:
                return str(error.code)

        with ThreadPoolExecutor(most) as clients:
            waiting = [clients.submit(outcome, number) for number in range(most)]
            until(lambda: texts(process)[0] == most)
            process.signal(signal.SIGTERM)
            found = {each.result() for each in waiting}
        assert found == ({"not_ready"} if unended else {"length"})
        assert process.wait(10) == 0
    assert process.stderr.read_text() == ""


def test_a_second_signal_ends_what_drains(tmp_path: Path) -> None:
    with Process(tmp_path / "data", "--step-seconds", "5") as process, ThreadPoolExecutor(1) as clients:
        prepared(process)
        cut = clients.submit(completion, process)
        until(lambda: texts(process) == (1, 0))
        process.signal(signal.SIGTERM)
        until(lambda: process.client.get("/ready").json().get("code") == "draining")
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert isinstance(cut.exception(), httpx.TransportError)
    with Process(tmp_path / "data") as process:
        process.until_ready()
        assert json.loads(process.client.get("/api/log/verify").text)["ok"]


def test_a_restart_loses_no_request_that_is_sent_again(tmp_path: Path) -> None:
    """As `systemctl restart` does it, under load: SIGTERM, the end, and a start on the same port, until it is ready."""
    data, stop = tmp_path / "data", threading.Event()
    process = Process(data, "--step-seconds", "0.05")
    port = process.url.rpartition(":")[2]
    client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=20, timeout=60)

    def ask() -> int:
        """Texts until the end; each is whole, or this raises."""
        made = 0
        while not stop.is_set():
            answer = client.completions.create(
                model="default", prompt="hello", max_tokens=WORDS, extra_body={"ignore_eos": True}
            )
            assert answer.choices[0].finish_reason == "length"
            made += 1
        return made

    with ThreadPoolExecutor(16) as clients:
        try:
            prepared(process)
            asking = [clients.submit(ask) for _ in range(16)]
            for _ in range(2):
                until(lambda: texts(process)[1] > 32)  # noqa: B023 - called at once
                process.signal(signal.SIGTERM)
                assert process.wait(30) == 0
                process.end()
                process = Process(data, "--step-seconds", "0.05", "--port", port)
                process.until_ready()
                before = texts(process)[1]
                until(lambda: texts(process)[1] > before + 16)  # noqa: B023 - called at once
        finally:
            stop.set()
            made = [each.result() for each in asking]
            begun, ended = texts(process)
            process.end()
    assert min(made) > 0
    assert sum(made) <= begun == ended
