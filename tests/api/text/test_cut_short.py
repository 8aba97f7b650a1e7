"""Texts that the service cuts short are errors for OpenAI's own client, streamed and not; nothing ends as if whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Completion

from ..conftest import MODEL, Running
from ..test_deadlines import stuck

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 100}


@pytest.fixture
async def client(service: Running) -> AsyncIterator[AsyncOpenAI]:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 3}]})
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def stop(service: Running) -> None:
    """The service ends, after some tokens."""
    service.engine.step_seconds = 0.02

    async def end() -> None:
        while not any(len(text.made) > 2 for text in service.context.generations._running.values()):
            await asyncio.sleep(0.01)
        await service.context.generations.close()

    service.ending = asyncio.create_task(end())  # type: ignore[attr-defined]


async def late(service: Running) -> None:
    """The text is past its deadline, after some tokens."""
    await stuck(service, 3)


async def fault(service: Running) -> None:
    """The hook fails, after some tokens."""
    service.engine.faults = {service.actor.state.attached[0].request_position: 3}


CAUSES = [(stop, 503, "not_ready"), (late, 504, "deadline_exceeded"), (fault, 500, "internal")]


@pytest.mark.parametrize(("cause", "status", "code"), CAUSES, ids=lambda each: getattr(each, "__name__", ""))
async def test_unstreamed(service: Running, client: AsyncOpenAI, cause: Any, status: int, code: str) -> None:
    await cause(service)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.completions.create(**ASK)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    if status == 503:
        assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("cause", "status", "code"), CAUSES, ids=lambda each: getattr(each, "__name__", ""))
async def test_streamed(service: Running, client: AsyncOpenAI, cause: Any, status: int, code: str) -> None:
    await cause(service)
    found: list[Completion] = []

    async def read() -> None:
        async for chunk in await client.completions.create(stream=True, **ASK):
            found.append(chunk)

    with pytest.raises(openai.APIError) as caught:
        await read()
    assert found, "some of it came"
    assert {choice.finish_reason for chunk in found for choice in chunk.choices} == {None}
    assert caught.value.code == code


async def test_the_log_keeps_its_own_words(service: Running, client: AsyncOpenAI) -> None:
    await stop(service)
    with pytest.raises(openai.InternalServerError):
        await client.completions.create(**ASK)
    assert (await service.events())[-1]["data"]["finish_reason"] == "cancelled"
