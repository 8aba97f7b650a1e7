"""Scores under an idempotency key: made once, for whoever asks, and answered again while they are in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from sae_actor.api.kept_answers import KEPT_SECONDS, KeptAnswers
from tests.fakes.log import MemoryLog

from ...conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio

STEERED = {"name": "steered", "sae": {"steering": [{"feature": 3, "strength": 2.0}]}}
BARE = {"name": "bare", "sae": {"baseline": True}}
ASK: dict[str, Any] = {"inputs": [{"prompt": "ab"}, {"prompt": "cd"}], "variants": [STEERED, BARE]}


async def post(service: Running, ask: dict[str, Any] = ASK, path: str = "/api/score", **headers: str) -> httpx.Response:
    return await service.client.post(path, json=ask, headers={"Idempotency-Key": "k1", **headers})


def code(answer: httpx.Response) -> tuple[int, str]:
    told = answer.json()
    return answer.status_code, told.get("error", told)["code"]


async def started(service: Running) -> list[dict[str, Any]]:
    return [event for event in await service.events() if event["type"] == "GenerationStarted"]


async def test_the_same_answer_and_one_effect(service: Running) -> None:
    await service.ready()
    first = await post(service)
    assert first.status_code == 200, first.text
    position = service.actor.state.position
    again = await post(service, dict(reversed(ASK.items())))
    assert (again.status_code, again.content) == (200, first.content)
    assert service.actor.state.position == position
    events = await started(service)
    assert len(events) == 4
    (command_id,) = {event["command_id"] for event in events}
    (digest,) = {event["data"]["request_sha256"] for event in events}
    assert len(digest) == 64
    outcome = (await service.client.get(f"/api/commands/{command_id}")).json()
    assert (outcome["status"], len(outcome["events"])) == ("completed", 8)
    bare = await service.client.post("/api/score", json=ASK)
    assert bare.json()["results"][0]["logprobs"] == first.json()["results"][0]["logprobs"]
    assert {(each["command_id"], each["data"]["request_sha256"]) for each in (await started(service))[4:]} == {
        (None, None)
    }


async def test_a_repetition_joins_and_who_leaves_cancels_nothing(service: Running) -> None:
    await service.ready()
    service.engine.text_gate = asyncio.Event()
    both = [asyncio.create_task(post(service)) for _ in range(2)]
    while len(await started(service)) < 4:
        await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.wait([both[0]])
    service.engine.text_gate.set()
    answer = await both[1]
    assert answer.status_code == 200
    assert (await post(service)).content == answer.content
    ends = [each["data"]["finish_reason"] for each in await service.events() if each["type"] == "GenerationFinished"]
    assert (len(ends), "cancelled" in ends) == (4, False)


@pytest.mark.parametrize("record_text", [False, True])
async def test_later_the_answer_is_gone(record_text: bool) -> None:
    """Log probabilities of single tokens are never on record."""
    log = MemoryLog()
    async with serving(log, record_text=record_text) as service:
        await service.ready()
        seconds = 0.0
        service.context.kept = KeptAnswers(clock=lambda: seconds)
        first = await post(service)
        seconds = KEPT_SECONDS - 1
        assert (await post(service)).content == first.content
        seconds = KEPT_SECONDS
        assert code(await post(service)) == (409, "answer_gone")
    async with serving(log, record_text=record_text) as service:
        gone = await post(service)
        assert code(gone) == (409, "answer_gone")
        assert gone.json()["generation_id"] == (await started(service))[0]["data"]["generation_id"]
        assert code(await post(service, {**ASK, "tag": "another"})) == (422, "idempotency_key_reused")
        assert len(await started(service)) == 4


async def test_another_request_under_the_key(service: Running) -> None:
    await service.ready()
    assert (await post(service)).status_code == 200
    text = {"prompt": "hello", "max_tokens": 3}
    for other, path in (({**ASK, "variants": [BARE]}, "/api/score"), (text, "/v1/completions"), (text, "/api/compare")):
        assert code(await post(service, other, path)) == (422, "idempotency_key_reused"), path
    assert len(await started(service)) == 4


async def test_lines_take_no_key(service: Running) -> None:
    await service.ready()
    refused = await post(service, Accept="application/x-ndjson")
    assert (refused.status_code, refused.json()["param"]) == (400, "Idempotency-Key")
    assert await started(service) == []


async def test_a_refusal_is_not_remembered(service: Running) -> None:
    assert code(await post(service)) == (409, "model_not_loaded")
    await service.command("LoadModel", model=MODEL)
    assert code(await post(service)) == (409, "sae_not_attached")
    await service.ready()
    assert (await post(service)).status_code == 200
