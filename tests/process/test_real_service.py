"""A service process with SmolLM2-135M-Instruct and the bundled SAE: what the official `openai` client gets from it,
and what its log proves afterwards."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from openai import AsyncOpenAI

from sae_actor.client import Client
from tests.cli.conftest import Ran, bare_environment, command
from tests.openai_suite import CHECKS, Service
from tests.process.harness import Process
from tests.reproducing.making import forged

__all__ = ["bare_environment", "command"]

pytestmark = [pytest.mark.anyio, pytest.mark.model]

BELIEVER = {"feature": 584, "strength": 85.0}


class Real(NamedTuple):
    """The service under test."""

    process: Process
    data: Path
    model: str
    sae_id: str


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, real_model: Path, demo_sae: Path) -> Iterator[Real]:
    settings = {"SAE_ACTOR_ENGINE_THREADS": "1", "SAE_ACTOR_AUDIT_RECORD_TEXT": "true"}
    data = tmp_path_factory.mktemp("real") / "data"
    with Process(data, "--torch", environment=settings) as process:
        process.client.timeout = 60
        process.send("model", type="LoadModel", model=str(real_model), dtype="float32", device="cpu")
        process.until_ready(100)
        imported = process.send("import", type="Import", path=str(demo_sae))
        sae_id: str = imported["events"][0]["data"]["sae_id"]
        attached = process.send("attach", type="Attach", sae_id=sae_id)
        assert attached["status"] == "completed", attached
        yield Real(process, data, str(real_model), sae_id)


@pytest.fixture
async def asked(real: Real) -> AsyncIterator[Service]:
    url = f"{real.process.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield Service(client, Path(real.model).name, real.sae_id, BELIEVER)


def test_one_rule_about_sinks(real: Real) -> None:
    """What is asked for over HTTP, with the default or with it said, is what `sae-actor steer` sets; with sinks it is
    another intervention, and the answer says so."""
    client = real.process.client
    chat = {"messages": [{"role": "user", "content": "Tell me about your day."}], "max_tokens": 12, "temperature": 0}

    def say(**own: Any) -> dict[str, Any]:
        answer: dict[str, Any] = client.post("/v1/chat/completions", json={**chat, "sae": own}).json()
        return answer

    said = [say(steering=[BELIEVER]), say(steering=[{**BELIEVER, "exclude": ["sink"]}])]
    with Client(real.process.url) as python:
        python.steer(real.sae_id, {584: 85})
    said.append(say())
    assert len({each["sae"]["intervention_sha256"] for each in said}) == 1
    assert {each["choices"][0]["message"]["content"] for each in said} == {
        "I'm a humble and compassionate God-fearing Christian who"
    }
    assert {tuple(each["sae"]["warnings"]) for each in said} == {()}
    everywhere = say(steering=[{**BELIEVER, "exclude": []}])
    (warning,) = everywhere["sae"]["warnings"]
    assert warning == 'attention sinks were edited, at position 0: "exclude" does not name "sink"'
    assert everywhere["sae"]["intervention_sha256"] != said[0]["sae"]["intervention_sha256"]
    told = client.post("/api/activations", json={"prompt": "I love this book"}).json()
    assert told["is_sink"] == [True, False, False, False]
    assert [bool(row) for row in told["features"]] == [False, True, True, True]
    compared = client.post("/api/compare", json={**chat, "sae": {"steering": [BELIEVER]}}).json()
    assert compared["steered"]["choices"][0]["message"] == said[0]["choices"][0]["message"]
    assert compared["baseline"]["choices"][0]["message"]["content"].startswith("It's a typical Monday")
    client.delete(f"/api/saes/{real.sae_id}/steering").raise_for_status()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_what_the_client_gets(check: Callable[[Service], Awaitable[None]], asked: Service) -> None:
    await check(asked)


def test_what_nobody_waits_for_holds_up_no_text(real: Real) -> None:
    """Prompts as large as a body may be, and looks at features, of clients that have left."""

    def text() -> float:
        began = time.monotonic()
        body = {"prompt": "hello there", "max_tokens": 8}
        assert real.process.client.post("/v1/completions", json=body).status_code == 200
        return time.monotonic() - began

    def leave(request: bytes, times: int) -> None:
        port = int(real.process.url.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for _ in range(times):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)).sendall(request)
            time.sleep(0.5)

    said = real.process.stderr.read_text()
    alone = min(text() for _ in range(2))
    prompt = json.dumps({"prompt": "a " * (2 * 1024 * 1024 - 100)}).encode()
    head = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
    leave(b"POST /v1/completions HTTP/1.1\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(prompt) + prompt, 8)
    assert text() < alone + 8
    leave(f"GET /api/saes/{real.sae_id}/features/5 HTTP/1.1\r\n".encode() + head + b"\r\n", 200)
    assert text() < 2 * alone + 3
    assert real.process.stderr.read_text() == said


def texts_between_changes(real: Real) -> list[str]:
    """Ids of texts: unsteered, steered, steered otherwise, and of a request's own steering; greedy and sampled."""
    made = []

    def say(**asked: Any) -> None:
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 5, **asked}
        answer = real.process.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        made.append(answer.json()["sae"]["generation_id"])

    def steer(*edits: dict[str, Any]) -> None:
        done = real.process.send(f"steer-{len(made)}", type="Steer", sae_id=real.sae_id, features=edits)
        assert done["status"] == "completed"

    say(temperature=0)
    steer(BELIEVER)
    say(temperature=0)
    say(temperature=1.1, seed=8)
    steer({"feature": 74, "strength": 90.0, "exclude": ["sink"]}, {"feature": 17, "strength": 0, "method": "scale"})
    say(temperature=0.8, top_p=0.9, seed=2)
    say(temperature=0, sae={"steering": [BELIEVER]})
    return made


def test_the_log_proves_what_was_made(real: Real, tmp_path: Path, command: Callable[..., Ran]) -> None:
    """The last test of this service: it is stopped here."""
    made = texts_between_changes(real)
    real.process.signal(signal.SIGINT)
    assert real.process.wait() == 0

    # In the log of a forger the believer's strength was a quarter: that is not what comes out of it.
    def forge(_: str, data: dict[str, Any]) -> None:
        if data.get("generation_id") == made[-1] and "intervention" in data:
            data["intervention"][0]["steering"][0]["strength"] /= 4

    folder = anyio.run(forged, real.data, tmp_path / "forged", forge)
    ran = command("log", "reproduce", *made, "--json", "--data-dir", str(folder))
    *views, view = [json.loads(line) for line in ran.out.splitlines()]
    assert [(each["generation_id"], each["verdict"]) for each in views] == [(each, "identical") for each in made[:-1]]
    assert all(each["positions_agree"] and each["environment"]["same"] for each in views)
    assert [each["scores"] is None for each in views] == [True, False, False, False]
    assert all(each["scores"]["largest"] > 1 for each in views[1:])
    assert (ran.code, view["generation_id"], view["verdict"]) == (65, made[-1], "different")
    assert view["digest_agrees"] is False
    assert view["first_difference"]["gap"] > view["tolerance"]
