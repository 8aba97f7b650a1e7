"""Asked for texts and activations while the model is on its way back, gone wrong, or only on record."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.log import MemoryLog

from .conftest import Running, serving

pytestmark = pytest.mark.anyio


async def refusals(service: Running, sae_id: str) -> list[tuple[int, str, str | None]]:
    """Status, code and Retry-After of a completion, a chat, activations and a feature."""
    asked: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
        ("POST", "/api/activations", {"prompt": "x"}),
        ("GET", f"/api/saes/{sae_id}/features/1", None),
    ]
    told = []
    for method, path, body in asked:
        answer = await service.client.request(method, path, json=body)
        said = answer.json()
        told.append((answer.status_code, said.get("error", said)["code"], answer.headers.get("retry-after")))
    return told


async def test_a_model_that_is_being_brought_back_is_waited_for() -> None:
    log = MemoryLog()
    async with serving(log) as service:
        sae_id = await service.ready()
    gate = asyncio.Event()
    engine = FakeEngine()
    engine.load_gate = gate
    async with serving(log, engine=engine) as service:
        # A feature is the SAE's, which has to wait for the model.
        assert await refusals(service, sae_id) == [(503, "not_ready", "2")] * 3 + [(409, "sae_not_attached", None)]
        gate.set()


async def test_a_model_that_could_not_be_loaded_is_named() -> None:
    async with serving() as service:
        command = {"type": "LoadModel", "model": "none/such"}
        outcome = await service.client.post("/api/commands", json=command, headers={"Prefer": "wait=10"})
        assert outcome.json()["status"] == "failed"
        answer = await service.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_not_loaded")
        assert "none/such failed to load" in answer.json()["error"]["message"]
        ready = await service.client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert [each["model"] for each in ready.json()["degraded"]] == ["none/such"]


async def test_a_demo_is_not_ready_before_its_contents_are_there() -> None:
    async with serving() as service:
        service.context.seeding = True
        ready = await service.client.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["the demo is being set up"])
        service.context.seeding = False
        assert (await service.client.get("/ready")).status_code == 200


async def test_a_service_that_only_reads_makes_nothing() -> None:
    async with serving() as service:
        sae_id = await service.ready()
        service.actor.started, service.actor.read_only = False, "the service was started with --read-only"
        assert {told[:2] for told in await refusals(service, sae_id)} == {(503, "read_only")}
