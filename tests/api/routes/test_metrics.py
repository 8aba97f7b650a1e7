"""`GET /metrics`, read by Prometheus' own parser: every number moves with what it counts."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from sae_actor.api.operations import OPERATIONS
from sae_actor.api.routes.metrics import MEDIA_TYPE
from sae_actor.domain.commands import AnyCommand
from sae_actor.domain.events import PAYLOADS
from sae_actor.errors import SAEDownloadError
from tests.fakes.engine import FakeEngine

from ..conftest import MODEL, REPOSITORY, Running, serving

pytestmark = pytest.mark.anyio

Numbers = dict[tuple[str, tuple[str, ...]], float]


async def numbers(service: Running) -> Numbers:
    """(name without `sae_actor_`, label values in the order of their labels' names) → value."""
    answer = await service.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{MEDIA_TYPE}; charset=utf-8"
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    found: Numbers = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name.removeprefix("sae_actor_"), tuple(sample.labels.values()))
            assert key not in found, key
            found[key] = sample.value
    return found


def moved(before: Numbers, after: Numbers) -> Numbers:
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


async def test_commands_events_and_turns(service: Running) -> None:
    before = await numbers(service)
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": []}, headers={"Idempotency-Key": "a"})
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": []}, headers={"Idempotency-Key": "a"})
    assert (await service.client.post("/api/saes/none/detach")).status_code == 404
    after = await numbers(service)
    change = moved(before, after)
    for command in ("LoadModel", "Download", "Attach"):
        assert change["commands_total", ("accepted", command)] == 1
        assert change["commands_total", ("completed", command)] == 1
    assert change["commands_total", ("accepted", "Steer")] == 1
    assert change["commands_total", ("completed", "Steer")] == 1
    assert change["commands_total", ("repeated", "Steer")] == 1
    assert change["commands_total", ("refused", "Detach")] == 1
    events = await service.events()
    assert {key[1][0]: value for key, value in after.items() if key[0] == "events_total"} == {
        name: sum(event["type"] == name for event in events) for name in {event["type"] for event in events}
    }
    assert after["log_position", ()] == len(events)
    assert change["turn_seconds_count", ()] >= 8
    assert change["append_seconds_count", ()] >= 7
    assert 0 < change["append_seconds_sum", ()] < change["turn_seconds_sum", ()] < 10
    assert after["turn_seconds_bucket", ("+Inf",)] == after["turn_seconds_count", ()]
    assert change["saes_attached", ()] == 1
    assert after["saes", ("cached",)] == 1


async def test_what_fails_is_told_apart(service: Running) -> None:
    service.hub.fail("download", SAEDownloadError("the hub is away"))
    body = {"type": "Download", "repository_id": REPOSITORY, "path": "layer.1"}
    outcome = await service.client.post("/api/commands", json=body, headers={"Prefer": "wait=10"})
    assert outcome.json()["status"] == "failed"
    found = await numbers(service)
    assert found["commands_total", ("failed", "Download")] == 1
    assert ("commands_total", ("completed", "Download")) not in found
    assert found["saes", ("error",)] == 1


async def test_a_download_that_is_cancelled(service: Running) -> None:
    gate = service.hub.hold("download")
    body = {"repository_id": REPOSITORY, "path": "layer.1"}
    sae_id = (await service.client.post("/api/saes/download", json=body)).json()["sae_id"]
    assert (await numbers(service))["commands_open", ()] == 1
    assert (await service.client.post(f"/api/saes/{sae_id}/cancel")).status_code == 200
    gate.set()
    found = await numbers(service)
    assert found["commands_open", ()] == 0
    assert found["commands_total", ("failed", "Download")] == 1
    assert found["commands_total", ("completed", "CancelDownload")] == 1


async def test_memory_and_downloads(service: Running) -> None:
    before = await numbers(service)
    sae_id = await service.ready()
    change = moved(before, await numbers(service))
    attachment = (await service.client.get("/api/saes/attachment")).json()
    assert change["sae_memory_bytes", ()] == attachment["memory_bytes"] > 0
    assert change["device_memory_bytes", ("saes",)] == attachment["device_bytes"] > 0
    assert change["device_memory_bytes", ("model",)] == (await service.client.get("/api/model")).json()["memory_bytes"]
    assert (
        change["download_bytes_total", ()]
        == (await service.client.get(f"/api/saes/{sae_id}")).json()["file_size_bytes"]
    )
    await service.command("Detach", sae_id=sae_id)
    found = await numbers(service)
    assert found["device_memory_bytes", ("saes",)] == found["sae_memory_bytes", ()] == found["saes_attached", ()] == 0


async def test_texts() -> None:
    engine = FakeEngine(max_running=1)
    async with serving(engine=engine) as service:
        await service.ready()
        before = await numbers(service)
        answer = await service.client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 7})
        usage = answer.json()["usage"]
        change = moved(before, await numbers(service))
        assert change["tokens_total", ("prompt",)] == usage["prompt_tokens"] == 5
        assert change["tokens_total", ("generated",)] == usage["completion_tokens"] == 7
        assert change["generations_total", ("length",)] == 1

        engine.text_gate = asyncio.Event()
        asked = [service.client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3}) for _ in range(3)]
        texts = [asyncio.create_task(each) for each in asked]
        await _until(service, ("generation_queue", ("waiting",)), 3)
        engine.text_gate.set()
        engine.text_gate = None
        await asyncio.gather(*texts)
        found = await numbers(service)
        assert found["generation_queue", ("waiting",)] == found["generation_queue", ("running",)] == 0
        assert found["generations_total", ("length",)] == 4


async def test_subscribers(service: Running) -> None:
    async with aconnect_sse(service.client, "GET", "/api/events"), aconnect_sse(service.client, "GET", "/api/events"):
        await _until(service, ("subscribers", ()), 2)
    await _until(service, ("subscribers", ()), 0)


async def test_a_mailbox_that_fills() -> None:
    async with serving() as service:
        service.actor.mailbox.capacity = 2
        append = service.log.append
        begun, gate = asyncio.Event(), asyncio.Event()

        async def slow(*args: Any, **more: Any) -> Any:
            begun.set()
            await gate.wait()
            return await append(*args, **more)

        service.log.append = slow  # type: ignore[method-assign]

        def post() -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(service.client.post("/api/commands", json={"type": "UnloadModel"}))

        sent = [post()]
        await begun.wait()
        sent += [post() for _ in range(4)]
        await _until(service, ("commands_total", ("refused", "UnloadModel")), 2)
        assert (await numbers(service))["mailbox_depth", ()] == 2
        gate.set()
        answers = await asyncio.gather(*sent)
        assert sorted(answer.status_code for answer in answers)[-2:] == [429, 429]
        assert all(answer.status_code != 429 for answer in answers[:1])
        assert (await numbers(service))["mailbox_depth", ()] == 0


async def test_requests_by_route_and_status(service: Running) -> None:
    before = await numbers(service)
    await service.client.get("/api/saes/some")
    await service.client.get("/api/saes/another")
    await service.client.get("/nowhere/secret-canary?token=secret-canary")
    await service.client.get("/nowhere/secret-canary")
    await service.client.get("/api/saes", headers={"host": "evil.example"})
    await service.client.request("PROPFIND", "/api/saes")
    await service.client.get("/api/saes")
    after = await numbers(service)
    change = moved(before, after)
    assert change["http_requests_total", ("GET", "/api/saes/{sae_id}", "404")] == 2
    assert change["http_requests_total", ("GET", "/api/saes", "200")] == 1
    assert change["http_requests_total", ("GET", "other", "404")] == 1
    assert change["http_requests_total", ("GET", "other", "400")] == 1
    assert change["http_requests_total", ("GET", "other", "403")] == 1
    assert change["http_requests_total", ("other", "other", "405")] == 1
    assert change["http_request_seconds_count", ("/api/saes",)] == 1
    assert "secret" not in (await service.client.get("/metrics")).text


async def test_labels_stay_few_whatever_is_asked(service: Running) -> None:
    for number in range(50):
        await service.client.get(f"/api/saes/sae-{number}")
        await service.client.get(f"/{number}")
        await service.client.post("/api/commands", json={"type": f"Nothing{number}"})
        await service.client.post(f"/api/saes/sae-{number}/detach")
    found = await numbers(service)
    routes = {each.path for each in OPERATIONS} | {"other"}
    assert {key[1][1] for key in found if key[0] == "http_requests_total"} <= routes
    assert {key[1][0] for key in found if key[0] == "events_total"} <= set(PAYLOADS)
    assert {key[1][1] for key in found if key[0] == "commands_total"} <= {each.__name__ for each in AnyCommand.__args__}
    assert len(found) < 400


async def test_numbers_of_the_process(service: Running) -> None:
    found = await numbers(service)
    assert found["process_resident_memory_bytes", ()] > 1e7
    assert found["process_open_fds", ()] > 3
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["process_start_time_seconds", ()] > 1.7e9
    assert found["tasks", ()] >= 2
    assert found["build_info", tuple(key[1][0] for key in found if key[0] == "build_info")] == 1


async def test_a_token_is_needed_and_not_told() -> None:
    async with serving(tokens=("secret-canary",)) as service:
        assert (await service.client.get("/metrics", headers={"authorization": ""})).status_code == 401
        answer = await service.client.get("/metrics")
        assert answer.status_code == 200
        assert "secret-canary" not in answer.text


async def test_a_full_load_of_the_model_is_seen(service: Running) -> None:
    service.engine.load_gate = asyncio.Event()
    await service.client.post("/api/commands", json={"type": "LoadModel", "model": MODEL})
    await _until(service, ("commands_open", ()), 1)
    service.engine.load_gate.set()
    await _until(service, ("commands_total", ("completed", "LoadModel")), 1)


async def test_two_services_of_one_process_count_for_themselves() -> None:
    async with serving() as one, serving() as other:
        await one.ready()
        assert (await numbers(one))["commands_total", ("completed", "Attach")] == 1
        assert not [key for key in await numbers(other) if key[0] == "commands_total"]
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("sae_actor")]


async def _until(service: Running, key: tuple[str, tuple[str, ...]], value: float) -> None:
    async with asyncio.timeout(10):
        while (await numbers(service)).get(key) != value:
            await asyncio.sleep(0.01)
