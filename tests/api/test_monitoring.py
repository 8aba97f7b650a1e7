"""`Monitor` over HTTP: the command, the state that shows it, and the events beside a text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from httpx_sse import aconnect_sse

from sae_actor.generations import monitoring

from .conftest import Running, serving
from .text.test_activations import on
from .text.test_routes import ASK

pytestmark = pytest.mark.anyio


async def monitors(service: Running, at: int | None = None) -> list[dict[str, Any]]:
    query = {} if at is None else {"at": at}
    shown: list[dict[str, Any]] = (await service.client.get("/api/state", params=query)).json()["monitors"]
    return shown


async def test_set_shown_and_taken_back(service: Running) -> None:
    sae_id = await service.ready()
    before = service.actor.state.position
    done = await service.command("Monitor", sae_id=sae_id, enabled=True, features=[3, 1], top_k=2)
    assert [event["type"] for event in done["events"]] == ["MonitoringChanged"]
    told = {"sae_id": sae_id, "features": [3, 1], "top_k": 2, "exclude": ["sink"], "position": before + 1}
    assert await monitors(service) == [told]
    etag = (await service.client.get("/api/state")).headers["etag"]
    assert etag == f'"{before + 1}"'
    await service.command("Monitor", sae_id=sae_id, enabled=False)
    assert await monitors(service) == []
    assert (await monitors(service, before), await monitors(service, before + 1)) == ([], [told])


async def test_refusals(service: Running) -> None:
    sae_id = await service.ready(attach=False)

    async def refused(**fields: Any) -> tuple[int, str]:
        answer = await service.client.post("/api/commands", json={"type": "Monitor", "enabled": True, **fields})
        return answer.status_code, answer.json()["code"]

    assert await refused(sae_id="unknown") == (404, "sae_not_found")
    assert await refused(sae_id=sae_id) == (409, "sae_not_attached")
    await service.command("Attach", sae_id=sae_id)
    assert await refused(sae_id=sae_id, features=[32]) == (422, "feature_out_of_range")
    assert await refused(sae_id=sae_id, features=[]) == (400, "bad_request")
    assert await refused(sae_id=sae_id, top_k=0) == (400, "bad_request")
    assert await refused(sae_id=sae_id, exclude=["template"]) == (400, "bad_request")
    assert await monitors(service) == []


async def test_a_restart_brings_it_back(service: Running) -> None:
    sae_id = await service.ready()
    await service.command("Monitor", sae_id=sae_id, enabled=True)
    await service.actor.stop()
    async with serving(service.log, hub=service.hub) as after:
        while (await after.client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)
        (shown,) = await monitors(after)
        assert (shown["sae_id"], shown["top_k"]) == (sae_id, 10)
        await after.actor.stop()
        service.actor.state = after.actor.state


@pytest.mark.parametrize("stream", [False, True])
async def test_events_beside_a_text(service: Running, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(monitoring, "EVERY_SECONDS", 0.0)
    sae_id = await service.ready()
    await service.command("Monitor", sae_id=sae_id, enabled=True, top_k=2)
    prompt, found = "hé!", []
    path = f"/api/events?types=activations&after={service.actor.state.position}"
    async with asyncio.timeout(10), aconnect_sse(service.client, "GET", path) as source:
        body = {**ASK, "prompt": prompt, "max_tokens": 3, "stream": stream, "sae": {"baseline": True}}
        answer = await service.client.post("/v1/completions", json=body)
        assert answer.status_code == 200
        assert '"features"' not in answer.text
        async for event in source.aiter_sse():
            assert (event.id, event.event) == ("", "activations")
            found.append(event.json())
            if len(found) == 3:
                break
    ids = prompt.encode()
    first = {"sae_id": sae_id, "position": len(ids) - 1, "token": "!", "features": on(ord("!"), 2)}
    assert {key: value for key, value in found[0].items() if key != "generation_id"} == first
    assert [each["position"] for each in found] == [len(ids) - 1, len(ids), len(ids) + 1]
    assert [each["features"] for each in found[1:]] == [on(ord(each["token"]), 2) for each in found[1:]]
    logged = [event["type"] for event in await service.events()]
    assert logged[-2:] == ["GenerationStarted", "GenerationFinished"]
