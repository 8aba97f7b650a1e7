"""One request with and without its intervention."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .conftest import Running
from .test_text import ASK, chunks

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
        assert told["steered"]["sae"]["receipt"]["tokens_edited"] == 23
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
