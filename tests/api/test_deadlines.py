"""Texts that take too long, and texts for which there is no place: told, on record, and out of the way of others."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from openai import AsyncOpenAI

from sae_actor.config import Settings
from sae_actor.generations.records import token_digest
from sae_actor.ports import GenerationRequest
from tests.fakes.engine import FakeEngine

from .conftest import Running, serving
from .text.test_routes import ASK, chunks

pytestmark = pytest.mark.anyio


async def stuck(service: Running, after: int) -> None:
    """The engine hangs behind so many tokens of a text, deaf to being stopped; texts are given up soon."""
    service.engine.text_gate = gate = asyncio.Event()
    service.context.generations.deadline_seconds = 0.2
    service.context.generations.stop_wait_seconds = 0.1
    gate.set()
    made = 0
    generate = service.engine.generate

    def watched(request: GenerationRequest):  # type: ignore[no-untyped-def]  # the fake's own stream
        nonlocal made
        stream = generate(request)
        step = stream.step

        def counted(ends_after: int | None) -> None:
            nonlocal made
            made += 1
            if made >= after:
                gate.clear()
            step(ends_after)

        stream.step = counted  # type: ignore[method-assign]
        stream.stop = lambda: None  # type: ignore[method-assign]
        return stream

    service.engine.generate = watched  # type: ignore[method-assign]
    if after == 0:
        gate.clear()


@pytest.mark.parametrize("after", [0, 3])
async def test_a_text_that_hangs_is_given_up(service: Running, after: int) -> None:
    """Row 62."""
    await service.ready()
    await stuck(service, after)
    answer = await service.client.post("/v1/completions", json=ASK)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (504, "deadline_exceeded")
    assert error["message"] == "the generation did not finish within 0.2 seconds"
    last = (await service.events())[-1]
    assert (last["type"], last["data"]["finish_reason"]) == ("GenerationFinished", "error")
    assert last["data"]["error"]["code"] == "deadline_exceeded"
    assert last["data"]["receipt"] is None, "the engine has not said what it wrote to"
    assert (last["data"]["output_sha256"] == token_digest(last["data"]["salt"], ())) is (after == 0)
    assert not service.engine._streams, "its place is free"
    assert service.engine.text_gate is not None
    service.engine.text_gate = None
    assert (await service.client.post("/v1/completions", json=ASK)).status_code == 200


async def test_the_deadline_counts_from_the_first_step(service: Running) -> None:
    """What waits has the same limit for its first step alone."""
    await service.ready()
    texts, engine = service.context.generations, service.engine
    engine.max_running, texts.deadline_seconds = 1, 3600.0
    engine.text_gate = gate = asyncio.Event()
    running = asyncio.create_task(service.client.post("/v1/completions", json=ASK))
    while not engine._streams:
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(service.client.post("/v1/completions", json={**ASK, "max_tokens": 100}))
    while len(engine._streams) < 2:
        await asyncio.sleep(0.01)
    texts.deadline_seconds = 0.2
    for ask in (("/v1/completions", ASK), ("/api/activations", {"prompt": "hello"})):
        answer = await service.client.post(ask[0], json=ask[1])
        assert (answer.status_code, "did not begin" in answer.text or "was not read" in answer.text) == (504, True)
    assert not any(each.done() for each in (running, waiting)), "they may wait, and take, an hour"
    engine.step_seconds = 0.05
    gate.set()
    assert (await running).status_code == 200
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        504,
        "the generation did not finish within 0.2 seconds",
    )


async def test_a_late_text_has_its_receipt_where_the_engine_still_answers(service: Running) -> None:
    sae_id = await service.ready()
    await service.command("Steer", sae_id=sae_id, features=[{"feature": 3, "strength": 7.0}])
    service.context.generations.deadline_seconds = 0.2
    service.engine.step_seconds = 0.01
    answer = await service.client.post("/v1/completions", json={**ASK, "max_tokens": 200})
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    end = (await service.events())[-1]["data"]
    run = end["receipt"]["tokens_prompt"] + end["receipt"]["tokens_generated"] - 1
    assert (end["finish_reason"], end["error"]["code"]) == ("error", "deadline_exceeded")
    assert (end["edited"], end["receipt"]["tokens_edited"]) == ([[1, run]], run - 1)


async def test_a_stream_is_told_so_in_its_midst(service: Running) -> None:
    await service.ready()
    await stuck(service, 3)
    with pytest.raises(AssertionError, match=r"\[DONE\]"):
        await chunks(service, "/v1/completions", ASK)
    whole = (await service.client.post("/v1/completions", json={**ASK, "stream": True})).text
    assert '"code":"deadline_exceeded"' in whole
    assert "[DONE]" not in whole


async def test_a_prompt_that_cannot_be_read_in_time(service: Running) -> None:
    await service.ready()
    await stuck(service, 0)
    answer = await service.client.post("/api/activations", json={"prompt": "hello"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert not service.engine._streams


async def test_the_engine_is_told_too(service: Running) -> None:
    await service.ready()
    asked: list[GenerationRequest] = []
    generate = service.engine.generate

    def seen(request: GenerationRequest):  # type: ignore[no-untyped-def]  # the fake's own stream
        asked.append(request)
        return generate(request)

    service.engine.generate = seen  # type: ignore[method-assign]
    await service.client.post("/v1/completions", json=ASK)
    seconds = Settings().engine.deadline_seconds
    assert service.context.generations.deadline_seconds == seconds < asked[0].deadline_seconds < seconds + 60
    service.context.generations.deadline_seconds = 3600.0
    await service.client.post("/v1/completions", json=ASK)
    assert (await service.client.post("/api/activations", json={"prompt": "hello"})).status_code == 200
    assert 3600 < asked[1].deadline_seconds == asked[2].deadline_seconds


@pytest.mark.parametrize("told", [True, False])
async def test_when_the_queue_is_full(service: Running, told: bool) -> None:
    """A service that knows its places puts nothing on record of what it refuses."""
    await service.ready()
    service.engine.max_running, service.engine.max_waiting = 1, 1
    service.context.generations.places = 2 if told else None
    service.engine.text_gate = asyncio.Event()
    running = [asyncio.create_task(service.client.post("/v1/completions", json=ASK)) for _ in range(2)]
    while len(service.engine._streams) < 2:
        await asyncio.sleep(0.01)
    before = service.actor.state.position
    for stream in (False, True):
        refused = await service.client.post("/v1/completions", json={**ASK, "stream": stream})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "mailbox_full")
        assert int(refused.headers["retry-after"]) >= 1
    assert service.actor.state.position == before + (0 if told else 4)
    service.engine.text_gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]


async def test_the_wait_is_told_from_the_backlog() -> None:
    """One text in three seconds, and four wait. A time without any says nothing about how long they take."""
    now = 0.0
    async with serving(engine=FakeEngine(max_running=1), monotonic=lambda: now) as service:
        await service.ready()
        texts, engine = service.context.generations, service.engine

        def ask(count: int) -> list[asyncio.Task[httpx.Response]]:
            return [asyncio.create_task(service.client.post("/v1/completions", json=ASK)) for _ in range(count)]

        for _ in range(4):
            engine.text_gate = asyncio.Event()
            asked = ask(1)
            while not engine._streams:
                await asyncio.sleep(0.01)
            now += 3.0
            engine.text_gate.set()
            assert (await asked[0]).status_code == 200
            now += 3600.0
        texts.places = 4
        engine.text_gate = asyncio.Event()
        running = ask(4)
        while len(engine._streams) < 4:
            await asyncio.sleep(0.01)
        refused = await service.client.post("/v1/completions", json=ASK)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "12"), "four of them, three seconds each"
        assert texts.quotas.ledger("local").refused == {"queue": 1}
        now += 6.0
        slower = await service.client.post("/v1/completions", json=ASK)
        assert slower.headers["retry-after"] == "18", "nothing has ended for six seconds"
        engine.text_gate.set()
        await asyncio.gather(*running)


async def test_160_at_once_lose_none_by_default(service: Running) -> None:
    """Through the official client, with its two retries."""
    await service.ready()
    settings = Settings().engine
    service.engine.max_running, service.engine.max_waiting = settings.max_running, settings.max_waiting
    service.context.generations.places = settings.max_running + settings.max_waiting
    service.engine.step_seconds = 0.005
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        asks = [client.completions.create(model="default", prompt=f"{n} and", max_tokens=16) for n in range(160)]
        made = await asyncio.gather(*asks)
    assert {each.usage.completion_tokens for each in made if each.usage is not None} == {16}
    assert len({each.id for each in made}) == 160
    assert (await service.client.get("/metrics")).text.count('status="429"') == 0
