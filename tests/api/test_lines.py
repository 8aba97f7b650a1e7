"""Characters at which some readers end a line are in no frame, whatever a client put into the log or the model said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from httpx_sse import aconnect_sse

from sae_actor.client.sse import frames
from tests.fakes.engine import FakeEngine

from .conftest import Running, serving
from .text.test_routes import ASK, CHAT

pytestmark = pytest.mark.anyio

BREAKS = "a\u2028b\u2029c\u0085d"
TEXTS = [("/v1/completions", ASK), ("/v1/chat/completions", CHAT), ("/api/compare", ASK)]


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with serving(engine=FakeEngine(), record_text=True) as running:
        await running.ready()
        running.engine.script = tuple(BREAKS.encode())
        yield running


async def lines(service: Running, method: str, path: str, **more: Any) -> AsyncIterator[str]:
    """As httpx cuts them: at every line end that Unicode knows."""
    async with service.client.stream(method, path, **more) as answer:
        async for line in answer.aiter_lines():
            yield line


@pytest.mark.parametrize(("path", "body"), TEXTS)
async def test_of_a_text(service: Running, path: str, body: dict[str, Any]) -> None:
    asked = {**body, "stream": True, "max_tokens": 40, "sae": {"tag": BREAKS}}
    found = [line async for line in lines(service, "POST", path, json=asked) if line]
    assert all(line.startswith("data: ") for line in found)
    assert found.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in found]
    plain = [each.get("baseline", each) if path == "/api/compare" else each for each in chunks]
    parts = [part for each in plain for part in each.get("choices", [])]
    assert "".join(part.get("text") or part.get("delta", {}).get("content", "") for part in parts) == BREAKS


async def test_of_an_event(service: Running) -> None:
    """In a tag, and in the text that is on record."""
    tag = BREAKS
    await service.client.post("/v1/completions", json={**ASK, "max_tokens": 40, "sae": {"tag": tag}})
    head = service.actor.state.position
    async with aconnect_sse(service.client, "GET", "/api/events") as source:
        found = []
        async for event in source.aiter_sse():
            found.append(event.json())
            if event.json()["position"] == head:
                break
    assert [each["position"] for each in found] == list(range(1, head + 1))
    assert [each["data"].get("tag") for each in found if each["type"] == "GenerationStarted"] == [tag]
    assert found[-1]["data"]["text"] == BREAKS
    assert found == await service.events()
    raw = (await service.client.get("/api/log", headers={"accept": "application/x-ndjson"})).text
    assert [json.loads(line) for line in raw.splitlines()] == found


async def test_our_own_reader_gets_the_same(service: Running) -> None:
    asked = {**ASK, "stream": True, "max_tokens": 40}
    sent = (await service.client.post("/v1/completions", json=asked)).content
    found = [json.loads(frame.data) for frame in frames([sent]) if frame.data != "[DONE]"]
    assert "".join(part["text"] for each in found for part in each["choices"]) == BREAKS
