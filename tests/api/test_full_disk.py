"""A full disk while texts run: what is said of it is true."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sae_actor.domain.events import Draft, Event
from sae_actor.errors import DiskFullError
from tests.fakes.log import MemoryLog

from .conftest import serving

pytestmark = pytest.mark.anyio

FULL = DiskFullError("no space for the event log; nothing was stored; make space and restart the service")


class Disk(MemoryLog):
    full = False

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        if self.full:
            raise FULL
        return await super().append(drafts, expected=expected)


ASK = {"prompt": "hello", "max_tokens": 3}


async def test_what_a_client_is_told() -> None:
    log = Disk()
    async with serving(log) as service:
        await service.ready()
        assert (await service.client.post("/v1/completions", json=ASK)).status_code == 200
        service.engine.text_gate = asyncio.Event()
        text = asyncio.create_task(service.client.post("/v1/completions", json=ASK))
        while not service.actor.state.generations:
            await asyncio.sleep(0.005)
        log.full = True
        service.engine.text_gate.set()
        lost = await text
        assert (lost.status_code, lost.json()["error"]["code"]) == (507, "disk_full")
        log.full = False
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
