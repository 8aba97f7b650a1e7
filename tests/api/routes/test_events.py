"""The stream and the log over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio


async def read(
    client: httpx.AsyncClient, count: int, path: str = "/api/events", headers: dict[str, str] | None = None
) -> list[tuple[str, str, Any]]:
    """The first `count` events: (id, type, data)."""
    found: list[tuple[str, str, Any]] = []
    async with aconnect_sse(client, "GET", path, headers=headers or {}) as source:
        async for event in source.aiter_sse():
            found.append((event.id, event.event, event.json()))
            if len(found) == count:
                break
    return found


async def test_everything_from_the_first_event_on(service: Running) -> None:
    await service.ready()
    events = await service.events()
    found = await read(service.client, len(events))
    assert [data for _, _, data in found] == events
    mark = service.log.log_id[:8]
    assert [event_id for event_id, _, _ in found] == [f"{mark}.{event['position']}" for event in events]


async def test_live_events_come_once_and_in_order(service: Running) -> None:
    sae_id = await service.ready()
    start = service.actor.state.position
    reading = asyncio.create_task(read(service.client, start + 20))
    for strength in range(20):
        await service.client.put(
            f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": strength}]}
        )
    found = await asyncio.wait_for(reading, 5)
    assert [data["position"] for _, _, data in found] == list(range(1, start + 21))


async def test_resuming_gives_exactly_the_rest(service: Running) -> None:
    await service.ready()
    head = service.actor.state.position
    everything = await read(service.client, head)
    for seen in (1, head // 2, head - 1):
        last = everything[seen - 1][0]
        assert await read(service.client, head - seen, headers={"Last-Event-ID": last}) == everything[seen:]
        path = f"/api/events?lastEventId={last}"
        assert await read(service.client, head - seen, path) == everything[seen:], "as a parameter too"
        assert await read(service.client, head - seen, f"{path}&after=1") == everything[seen:], "which wins over after"
        header = {"Last-Event-ID": everything[0][0]}
        assert await read(service.client, head - 1, path, header) == everything[1:], "and the header over that"
    assert await read(service.client, head - 1, "/api/events?after=1&lastEventId=") == everything[1:], "none is none"
    # Last-Event-ID wins over after.
    path = f"/api/events?after={head - 1}"
    assert await read(service.client, head - 1, path, {"Last-Event-ID": everything[0][0]}) == everything[1:]


@pytest.mark.parametrize(
    "last", ["0", "abc", "-1", "10000000.1", "{mark}.999", "{mark}.1e1", "{mark}.-1", "{mark}." + "9" * 30]
)
async def test_impossible_ids_are_reset(service: Running, last: str) -> None:
    await service.command("LoadModel", model=MODEL)
    last = last.replace("{mark}", service.log.log_id[:8])
    head = service.actor.state.position
    found = await read(service.client, head + 1, headers={"Last-Event-ID": last})
    assert found[0][1] == "reset"
    assert [data["position"] for _, _, data in found[1:]] == list(range(1, head + 1))


async def test_types_are_filtered(service: Running) -> None:
    await service.ready()
    found = await read(service.client, 2, "/api/events?types=ModelLoaded,SaeAttached")
    assert [kind for _, kind, _ in found] == ["ModelLoaded", "SaeAttached"]
    logged = (await service.client.get("/api/log?types=SaeAttached")).json()["events"]
    assert [event["type"] for event in logged] == ["SaeAttached"]


async def test_what_names_an_sae_is_filtered(service: Running) -> None:
    one = await service.ready()
    other = await service.download("layer.2")
    about = {each: [e for e in await service.events() if e["data"].get("sae_id") == each] for each in (one, other)}
    assert (len(about[one]), len(about[other])) == (4, 2)
    for sae_id in (one, other):
        found = await read(service.client, len(about[sae_id]), f"/api/events?sae_id={sae_id}")
        assert [data for _, _, data in found] == about[sae_id]
        logged = await service.client.get("/api/log", params={"sae_id": sae_id})
        assert logged.json()["events"] == about[sae_id]
    both = {"sae_id": one, "types": "SaeAttached,DownloadCompleted", "limit": "1", "after": "5"}
    (attached,) = (await service.client.get("/api/log", params=both)).json()["events"]
    assert attached["type"] == "SaeAttached"
    for bad in ("", "x" * 201):
        assert (await service.client.get("/api/events", params={"sae_id": bad})).status_code == 400


async def test_checkpoints_tell_the_head(service: Running) -> None:
    service.context.heartbeat = 0.05
    await service.command("LoadModel", model=MODEL)
    head = service.actor.state.position
    found = await read(service.client, head + 3)
    assert [kind for _, kind, _ in found[head:]] == ["checkpoint"] * 3
    assert found[-1][2] == (await service.client.get("/api/log")).json()["head"]
    assert found[-1][0] == found[head - 1][0], "a checkpoint has no id: what a reader resumes behind stays"
    only = await read(service.client, 2, "/api/events?types=checkpoint")
    assert [kind for _, kind, _ in only] == ["checkpoint"] * 2
    async with service.client.stream("GET", "/api/events?types=ModelLoaded") as answer:
        text = ""
        async for part in answer.aiter_text():
            text += part
            if text.count(": still here\n") == 3:
                break
    assert "checkpoint" not in text


async def test_as_many_readers_as_there_are_seats(service: Running) -> None:
    service.context.max_readers = 10
    async with contextlib.AsyncExitStack() as stack:
        streams = [service.client.stream("GET", "/api/events") for _ in range(30)]
        answers = await asyncio.gather(*(stack.enter_async_context(each) for each in streams))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 10 + [429] * 20
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert (refused.headers["retry-after"], json.loads(await refused.aread())["code"]) == ("5", "mailbox_full")
        assert (await service.client.get("/api/saes")).status_code == 200
    async with asyncio.timeout(5):
        while service.actor.broadcast.readers:
            await asyncio.sleep(0.01)
    assert (await read(service.client, 1))[0][1] == "ActorStarted"


async def test_the_stream_ends_with_the_service() -> None:
    """With a farewell that sends each reader back at another time."""
    async with serving() as service:
        reading = [asyncio.create_task(service.client.get("/api/events")) for _ in range(5)]
        await asyncio.sleep(0.2)
        service.actor.broadcast.close()
        texts = [(await asyncio.wait_for(each, 2)).text for each in reading]
    assert all("\nevent: bye\n" in text.split("\n\n")[-2] for text in texts)
    times = [[int(each) for each in re.findall(r"^retry: (\d+)$", text, re.MULTILINE)] for text in texts]
    assert {first for first, _ in times} == {2000}
    assert len({last for _, last in times}) > 1
    assert all(1000 <= last <= 4000 for _, last in times)


async def test_the_log_by_the_page_and_by_the_line(service: Running) -> None:
    await service.ready()
    whole = (await service.client.get("/api/log")).json()
    head = whole["head"]
    assert head["position"] == len(whole["events"]) == whole["events"][-1]["position"]
    assert head["hash"] == whole["events"][-1]["hash"]
    page = (await service.client.get("/api/log?after=2&limit=3")).json()["events"]
    assert page == whole["events"][2:5]
    lines = await service.client.get("/api/log", headers={"Accept": "application/x-ndjson"})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in lines.text.splitlines()] == whole["events"]
    verified = (await service.client.get("/api/log/verify")).json()
    assert (verified["ok"], verified["events"], verified["head"]) == (True, head["position"], head)


async def test_the_state_as_it_was(service: Running) -> None:
    sae_id = await service.ready()
    attached = service.actor.state.position
    await service.command("Detach", sae_id=sae_id)
    assert (await service.client.get("/api/state?at=0")).json() == {
        "position": 0, "model": None, "saes": {}, "attachments": [], "monitors": [], "labels": {},
        "presets": [], "runs": [], "commands": [], "generations": [],
    }  # fmt: skip
    then = (await service.client.get(f"/api/state?at={attached}")).json()
    assert [a["sae_id"] for a in then["attachments"]] == [sae_id]
    assert then["saes"][sae_id]["status"] == "attached"
    now = (await service.client.get("/api/state")).json()
    assert now["attachments"] == []
    assert now["position"] == service.actor.state.position
    assert now == (await service.client.get(f"/api/state?at={now['position']}")).json()


async def test_health_and_readiness(service: Running) -> None:
    assert (await service.client.get("/health")).status_code == 200
    ready = await service.client.get("/ready")
    assert (ready.status_code, ready.json()["degraded"]) == (200, [])


async def test_a_restart_brings_back_what_was_there(service: Running) -> None:
    sae_id = await service.ready()
    edits = {"features": [{"feature": 3, "strength": 7, "exclude": ["sink"]}]}
    await service.client.put(f"/api/saes/{sae_id}/steering", json=edits)
    before = (await service.client.get("/api/saes/attachment")).json()
    await service.actor.stop()
    async with serving(service.log, hub=service.hub) as after:
        while (await after.client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)
        now = (await after.client.get("/api/saes/attachment")).json()
        same = ("sae_id", "layer", "hook_point", "mode", "attached_at", "steering", "memory_bytes")
        assert {key: now[key] for key in same} == {key: before[key] for key in same}
        restored = [e for e in await after.events() if e["data"].get("restored")]
        assert [e["type"] for e in restored] == ["ModelLoaded", "SaeAttached"]
        await after.actor.stop()
        service.actor.state = after.actor.state


async def test_what_cannot_be_brought_back_is_degraded(service: Running) -> None:
    from sae_actor.errors import SAEInvalidError
    from tests.fakes.engine import FakeEngine

    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 3, "strength": 7}]})
    await service.actor.stop()
    broken = FakeEngine(attach_error=SAEInvalidError("weights are damaged"))
    async with serving(service.log, engine=broken, hub=service.hub) as after:
        while (await after.client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)
        ready = (await after.client.get("/ready")).json()
        assert [each["sae_id"] for each in ready["degraded"]] == [sae_id]
        ask = {"prompt": "hi", "max_tokens": 2, "temperature": 0}
        refused = await after.client.post("/v1/completions", json=ask)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"]
        owns: list[dict[str, Any]] = [{"baseline": True}, {"steering": []}]
        for own in owns:
            assert (await after.client.post("/v1/completions", json={**ask, "sae": own})).status_code == 200
        broken.attach_error = None
        assert (await after.client.post(f"/api/saes/{sae_id}/detach")).status_code == 200
        assert (await after.client.post("/v1/completions", json=ask)).status_code == 200
        await after.actor.stop()
        service.actor.state = after.actor.state
