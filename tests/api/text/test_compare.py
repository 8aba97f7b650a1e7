"""One request with and without its intervention."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.fakes.log import MemoryLog

from ..conftest import Running, serving
from .test_routes import ASK, chunks

pytestmark = pytest.mark.anyio

OWN = {"steering": [{"feature": 3, "strength": 9}]}


async def alone(service: Running, **body: Any) -> str:
    text: str = (await service.client.post("/v1/completions", json={**ASK, **body})).json()["choices"][0]["text"]
    return text


async def test_both_branches(service: Running) -> None:
    await service.ready()
    for settings in ({}, {"temperature": 1}, {"temperature": 1, "seed": 4}):
        answer = await service.client.post("/api/compare", json={**ASK, **settings, "sae": {**OWN, "tag": "t"}})
        assert answer.status_code == 200
        told = answer.json()
        assert list(told) == ["steered", "baseline"]
        seed = told["steered"]["sae"]["seed"]
        assert seed == told["baseline"]["sae"]["seed"] == settings.get("seed", seed)
        again = {**settings, "seed": seed}
        assert told["steered"]["choices"][0]["text"] == await alone(service, **again, sae=OWN)
        assert told["baseline"]["choices"][0]["text"] == await alone(service, **again, sae={"baseline": True})
        assert told["baseline"]["sae"]["interventions"] == []
        assert told["steered"]["sae"]["receipt"]["tokens_edited"] == 22
        assert told["steered"]["sae"]["receipt"]["tokens_excluded"] == 1
    started = [event["data"] for event in await service.events() if event["type"] == "GenerationStarted"]
    assert [each["baseline"] for each in started[:2]] == [False, True]
    assert [each["tag"] for each in started[:2]] == ["t", "t"]


async def test_under_the_servers_own(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": OWN["steering"]})
    told = (await service.client.post("/api/compare", json={**ASK, "prompt": ["a", "b"]})).json()
    assert [choice["text"] for choice in told["steered"]["choices"]] == [
        await alone(service, prompt=prompt) for prompt in ("a", "b")
    ]
    assert [choice["text"] for choice in told["baseline"]["choices"]] == [
        await alone(service, prompt=prompt, sae={"baseline": True}) for prompt in ("a", "b")
    ]


CHAT = {"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "hello"}], "temperature": 0}


async def answered(service: Running, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await service.client.post("/v1/chat/completions", json={**CHAT, **body})).json()
    return answer


async def test_of_a_chat(service: Running) -> None:
    await service.ready()
    body = {**CHAT, "max_completion_tokens": 6, "logprobs": True, "sae": OWN}
    told = (await service.client.post("/api/compare", json=body)).json()
    steered = await answered(service, max_tokens=6, sae=OWN)
    bare = await answered(service, max_tokens=6, sae={"baseline": True})
    assert told["steered"]["choices"][0]["message"] == steered["choices"][0]["message"]
    assert told["baseline"]["choices"][0]["message"] == bare["choices"][0]["message"]
    assert told["steered"]["choices"][0]["message"] != told["baseline"]["choices"][0]["message"]
    assert {told[branch]["object"] for branch in told} == {"chat.completion"}
    assert len(told["steered"]["choices"][0]["logprobs"]["content"]) == 6
    started = [event["data"] for event in await service.events() if event["type"] == "GenerationStarted"]
    assert [each["kind"] for each in started[:2]] == ["chat", "chat"]


async def test_a_chat_goes_on_to_the_contexts_end(service: Running) -> None:
    """As `/v1/chat/completions` does, not for a completion's 16 tokens."""
    await service.ready()
    told = (await service.client.post("/api/compare", json=CHAT)).json()
    for branch in ("steered", "baseline"):
        assert told[branch]["usage"]["total_tokens"] == 256, branch


async def test_a_chat_streamed_side_by_side(service: Running) -> None:
    await service.ready()
    body = {**CHAT, "max_tokens": 5, "sae": {**OWN, "top_k_features": 1}}
    whole = (await service.client.post("/api/compare", json=body)).json()
    found = await chunks(service, "/api/compare", body)
    for branch, told in whole.items():
        mine = [each[branch] for each in found if branch in each]
        deltas = [choice["delta"] for each in mine for choice in each["choices"]]
        assert deltas[0]["role"] == "assistant"
        text = "".join(delta.get("content", "") for delta in deltas)
        assert text == told["choices"][0]["message"]["content"]
        assert mine[-1]["sae"]["features"] == told["sae"]["features"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "messages": CHAT["messages"]}, "prompt"),
        ({"max_tokens": 3}, None),
        ({"messages": []}, "messages"),
        ({"messages": CHAT["messages"], "echo": True}, "echo"),
        ({"messages": CHAT["messages"], "sae": {"baseline": True}}, "sae.baseline"),
    ],
)
async def test_what_is_neither(service: Running, body: dict[str, Any], param: str | None) -> None:
    await service.ready()
    refused = await service.client.post("/api/compare", json=body)
    assert (refused.status_code, refused.json().get("param")) == (400, param), refused.text
    if "prompt" in body:
        assert refused.json()["detail"] == "give exactly one of prompt, messages"


async def test_warnings(service: Running) -> None:
    """An edit of a sink is told in the steered branch, whole and streamed."""
    await service.ready()
    for asked in (ASK, CHAT):
        for exclude, count in ((["sink"], 0), ([], 1)):
            own = {"steering": [{"feature": 3, "strength": 9, "exclude": exclude}]}
            body = {**asked, "max_tokens": 3, "sae": own}
            told = (await service.client.post("/api/compare", json=body)).json()
            assert len(told["steered"]["sae"]["warnings"]) == count
            assert told["baseline"]["sae"]["warnings"] == []
            found = await chunks(service, "/api/compare", body)
            last = [each["steered"] for each in found if "steered" in each][-1]
            assert last["sae"]["warnings"] == told["steered"]["sae"]["warnings"]


@pytest.mark.parametrize("usage", [False, True])
async def test_streamed_side_by_side(service: Running, usage: bool) -> None:
    await service.ready()
    service.engine.step_seconds = 0.01
    body = {**ASK, "sae": {**OWN, "top_k_features": 1}}
    whole = (await service.client.post("/api/compare", json=body)).json()
    options = {"stream_options": {"include_usage": True}} if usage else {}
    found = await chunks(service, "/api/compare", {**body, **options})
    assert all(len(each) == 1 for each in found)
    for branch, told in whole.items():
        mine = [each[branch] for each in found if branch in each]
        parts = [choice for each in mine for choice in each["choices"]]
        assert "".join(part["text"] for part in parts) == told["choices"][0]["text"]
        assert mine[-1]["sae"]["features"] == told["sae"]["features"]
        assert ("usage" in mine[-1]) is usage
    names = [next(iter(each)) for each in found]
    assert names != sorted(names), "they come side by side"
    assert names != sorted(names, reverse=True)


async def test_refusals_leave_nothing_running(service: Running) -> None:
    await service.ready()
    both = await service.client.post("/api/compare", json={**ASK, "sae": {"baseline": True}})
    assert (both.status_code, both.json()["param"]) == (400, "sae.baseline")
    edits = [{"feature": 99, "strength": 1}]
    unknown = await service.client.post("/api/compare", json={**ASK, "sae": {"steering": edits}})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "feature_out_of_range")
    service.engine.max_running, service.engine.max_waiting, service.engine.step_seconds = 1, 0, 0.01
    full = await service.client.post("/api/compare", json=ASK)
    assert (full.status_code, full.json()["code"]) == (429, "mailbox_full")
    while service.actor.state.generations:
        await asyncio.sleep(0.01)


async def test_a_reader_who_leaves_ends_both(service: Running) -> None:
    await service.ready()
    service.engine.text_gate = asyncio.Event()
    for stream in (False, True):
        sent = asyncio.create_task(service.client.post("/api/compare", json={**ASK, "stream": stream}))
        while len(service.actor.state.generations) < 2:
            await asyncio.sleep(0.01)
        sent.cancel()
        while service.actor.state.generations:
            await asyncio.sleep(0.01)


async def keyed(service: Running, body: dict[str, Any]) -> httpx.Response:
    return await service.client.post("/api/compare", json=body, headers={"Idempotency-Key": "k1"})


@pytest.mark.parametrize("record_text", [False, True])
@pytest.mark.parametrize("ask", [{**ASK, "prompt": ["a", "b"]}, {**CHAT, "max_tokens": 4}], ids=["completion", "chat"])
async def test_made_once_under_a_key(ask: dict[str, Any], record_text: bool) -> None:
    """As on the other text routes: kept in memory, then made again from the log if that has the texts."""
    log, body = MemoryLog(), {**ask, "temperature": 1, "sae": OWN}
    async with serving(log, record_text=record_text) as service:
        await service.ready()
        streamed = await keyed(service, {**body, "stream": True})
        assert (streamed.status_code, streamed.json()["param"]) == (400, "Idempotency-Key")
        first, again = [await keyed(service, body) for _ in range(2)]
        assert (again.status_code, again.content) == (200, first.content)
        texts = 2 * len(first.json()["steered"]["choices"])
        started = [event for event in await service.events() if event["type"] == "GenerationStarted"]
        assert (len(started), len({event["command_id"] for event in started})) == (texts, 1)
        assert [event["data"]["baseline"] for event in started] == [False] * (texts // 2) + [True] * (texts // 2)
    async with serving(log, record_text=record_text) as service:
        other = await keyed(service, {**body, "max_tokens": 5})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        again = await keyed(service, body)
        if record_text:
            assert (again.status_code, again.json()) == (200, first.json())
        else:
            assert (again.status_code, again.json()["code"]) == (409, "answer_gone")
        assert len([event for event in await service.events() if event["type"] == "GenerationStarted"]) == texts


async def test_a_preset_by_the_models_name_is_the_first_ones(service: Running) -> None:
    sae_id = await service.ready()
    await service.command("SavePreset", name="calm", interventions=[{"sae_id": sae_id, **OWN}])
    told = (await service.client.post("/api/compare", json={**ASK, "model": "default@calm"})).json()
    assert told["steered"]["sae"]["preset"]["name"] == "calm"
    assert told["steered"]["choices"][0]["text"] == await alone(service, sae=OWN)
    assert told["baseline"]["sae"].get("preset") is None
    assert told["baseline"]["choices"][0]["text"] == await alone(service, sae={"baseline": True})
    unknown = await service.client.post("/api/compare", json={**ASK, "model": "default@none"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
