"""Users who share the service: each has its turn, whoever asked first."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.config.access import Grant, digest_of

from .conftest import serving

pytestmark = pytest.mark.anyio

ASK = {"model": "default", "prompt": "hello", "max_tokens": 3, "temperature": 0}
FIRST, SECOND = "a" * 32, "b" * 32
OTHER = Grant("second", "operator", digest_of(SECOND.encode()))


async def test_a_text_of_another_begins_after_at_most_one_of_the_firsts() -> None:
    async with serving(tokens=(FIRST,), grants=(OTHER,), bearer=FIRST) as service:
        await service.ready()
        service.engine.max_running = 2
        service.context.generations.places = 40
        service.engine.text_gate = asyncio.Event()
        many = [asyncio.create_task(service.client.post("/v1/completions", json=ASK)) for _ in range(40)]
        while len(service.engine._streams) < 40:
            await asyncio.sleep(0.01)
        refused = await service.client.post("/v1/completions", json=ASK)
        assert refused.status_code == 429
        theirs = {"authorization": f"Bearer {SECOND}"}
        other = [
            asyncio.create_task(service.client.post("/v1/completions", json=ASK, headers=theirs)) for _ in range(3)
        ]
        while len(service.engine._streams) < 43:
            await asyncio.sleep(0.01)
        service.engine.text_gate.set()
        answers = await asyncio.gather(*many, *other)
        assert {answer.status_code for answer in answers} == {200}
        ends = [event for event in await service.events() if event["type"] == "GenerationFinished"]
        whose = [event["principal"] for event in ends]
        at = [place for place, principal in enumerate(whose) if principal == "second"]
        assert len(at) == 3
        # Two were running; then one of the first at most before each of the second's, two beside each other.
        assert all(place <= 2 + 2 * (n + 1) for n, place in enumerate(at))
