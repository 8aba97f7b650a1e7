"""The official `openai` client against the API, over a real socket and without torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from openai import AsyncOpenAI

from tests.openai_suite import CHECKS, Service

from ..conftest import MODEL, Running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def asked(service: Running) -> AsyncIterator[Service]:
    sae_id = await service.ready()
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield Service(client, MODEL, sae_id, {"feature": 3, "strength": 7.0})


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_what_the_client_gets(check: Callable[[Service], Awaitable[None]], asked: Service) -> None:
    await check(asked)
