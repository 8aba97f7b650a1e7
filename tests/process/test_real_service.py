"""A service process with SmolLM2-135M-Instruct and the bundled SAE: what the official `openai` client gets from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from openai import AsyncOpenAI

from tests.openai_suite import CHECKS, Service
from tests.process.harness import Process

pytestmark = [pytest.mark.anyio, pytest.mark.model]

BELIEVER = {"feature": 584, "strength": 85.0, "exclude": ["sink"]}


class Real(NamedTuple):
    """The service under test."""

    process: Process
    model: str
    sae_id: str


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, real_model: Path, demo_sae: Path) -> Iterator[Real]:
    settings = {"SAE_ACTOR_ENGINE_THREADS": "1", "SAE_ACTOR_AUDIT_RECORD_TEXT": "true"}
    data = tmp_path_factory.mktemp("real") / "data"
    with Process(data, "--torch", environment=settings) as process:
        process.client.timeout = 60
        process.send("model", type="LoadModel", model=str(real_model), dtype="float32", device="cpu")
        imported = process.send("import", type="Import", path=str(demo_sae))
        sae_id: str = imported["events"][0]["data"]["sae_id"]
        attached = process.send("attach", type="Attach", sae_id=sae_id)
        assert attached["status"] == "completed", attached
        yield Real(process, str(real_model), sae_id)


@pytest.fixture
async def asked(real: Real) -> AsyncIterator[Service]:
    url = f"{real.process.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield Service(client, real.model, real.sae_id, BELIEVER)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_what_the_client_gets(check: Callable[[Service], Awaitable[None]], asked: Service) -> None:
    await check(asked)
