"""A full disk while texts run: what is said of it is true."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.errors import DiskFullError
from tests.actor.world import FaultyLog

from .conftest import serving

pytestmark = pytest.mark.anyio

FULL = DiskFullError("no space for the event log; nothing was stored; make space and restart the service")
ASK = {"prompt": "hello", "max_tokens": 3}


async def test_what_a_client_is_told() -> None:
    async with serving() as service:
        await service.ready()
        assert (await service.client.post("/v1/completions", json=ASK)).status_code == 200
        service.engine.text_gate = asyncio.Event()
        text = asyncio.create_task(service.client.post("/v1/completions", json=ASK))
        while not service.actor.state.generations:
            await asyncio.sleep(0.005)
        service.actor._log = log = FaultyLog(service.log)
        log.append_error = FULL
        service.engine.text_gate.set()
        lost = await text
        assert (lost.status_code, lost.json()["error"]["code"]) == (507, "disk_full")
        log.append_error = None
        for answer in (
            await service.client.get("/ready"),
            await service.client.post("/api/commands", json={"type": "UnloadModel"}),
            await service.client.post("/v1/completions", json=ASK),
        ):
            problem = answer.json().get("error", answer.json())
            assert (answer.status_code, problem["code"], answer.headers["retry-after"]) == (503, "read_only", "60")
            assert FULL.detail in (problem.get("detail"), problem.get("message"))
        assert (await service.client.get("/health")).status_code == 200
        metrics = (await service.client.get("/metrics")).text.splitlines()
        ended = [line for line in metrics if "generations_total{" in line]
        assert [line.rsplit(" ", 1)[1] for line in ended] == ["1.0"], "the end that found no space is not counted"
        assert any(line.endswith("log_read_only 1.0") for line in metrics)
