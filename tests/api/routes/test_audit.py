"""The audit of the log over HTTP: verify, diff, explain, export, and the state at a time."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.events import Draft
from sae_actor.domain.evolve import fold
from sae_actor.domain.views.difference import difference
from sae_actor.eventlog.audit.contents import NAMES
from tests.fakes.log import MemoryLog

from ..conftest import Running, serving

pytestmark = pytest.mark.anyio

ASK = {"model": "default", "prompt": "Once", "max_tokens": 4, "temperature": 0}


async def get(service: Running, path: str, **query: Any) -> Any:
    answer = await service.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def said(service: Running, **sae: Any) -> dict[str, Any]:
    answer = await service.client.post("/v1/completions", json={**ASK, "sae": sae})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()["sae"]
    return body


@pytest.fixture
async def told(service: Running) -> Running:
    """A service with an SAE attached, steered twice."""
    sae_id = await service.ready()
    for strength in (5.0, 9.0):
        body = {"features": [{"feature": 3, "strength": strength}]}
        assert (await service.client.put(f"/api/saes/{sae_id}/steering", json=body)).status_code == 200
    return service


async def test_verify(told: Running) -> None:
    head = (await get(told, "/api/log", limit=1))["head"]
    whole = await get(told, "/api/log/verify")
    assert whole == {"ok": True, "events": head["position"], "head": head, "verified_from": 1}
    assert await get(told, "/api/log/verify", full="true") == whole
    assert await get(told, "/api/log/verify", full="false") == whole
    events = await told.events()
    noted = ",".join(f"{event['position']}:{event['hash']}" for event in events[:3])
    assert await get(told, "/api/log/verify", head=noted) == whole
    assert await get(told, "/api/log/verify", head=noted.upper(), full="false") == whole
    wrong = await get(told, "/api/log/verify", head=f"{noted},2:{'0' * 64}")
    assert (wrong["ok"], wrong["first_bad"]) == (False, 2)
    assert "verified_from" not in wrong
    for name, value in (("full", "1"), ("full", ""), ("head", ""), ("head", "2"), ("head", f"0:{'0' * 64}"),
                        ("head", f"2:{'0' * 63}"), ("head", ",".join([f"2:{'0' * 64}"] * 17))):  # fmt: skip
        answer = await told.client.get("/api/log/verify", params={name: value})
        assert (answer.status_code, answer.json()["param"]) == (400, name)


async def test_what_is_changed_under_it_is_found_by_a_whole_walk(told: Running) -> None:
    """By a whole walk; the other takes what was walked before for known, but what was found wrong stays wrong."""
    await get(told, "/api/log/verify")
    rows = told.log._rows
    kept, rows[1] = rows[1], rows[1]._replace(principal="root")
    try:
        assert (await get(told, "/api/log/verify", full="false"))["ok"]
        damaged = await get(told, "/api/log/verify")
        assert (damaged["ok"], damaged["first_bad"]) == (False, 2)
        assert await get(told, "/api/log/verify", full="false") == damaged
        export = await told.client.get("/api/log/export")
        assert (export.status_code, export.json()["code"]) == (500, "internal")
    finally:
        rows[1] = kept
    assert (await get(told, "/api/log/verify"))["ok"]
    assert (await get(told, "/api/log/verify", full="false"))["ok"]


async def test_diff(told: Running) -> None:
    events = await told.log.read(0, 1000)
    head = len(events)
    for one, other in ((0, head), (head, 0), (2, 5), (head - 1, head), (3, 3)):
        view = await get(told, "/api/log/diff", **{"from": one, "to": other})
        assert view == json.loads(json.dumps(difference(fold(events[:one]), fold(events[:other]))))
    now = await get(told, "/api/log/diff", **{"from": head - 1})
    (changed,) = now["attachments"]["changed"]
    (pair,) = changed["steering"]["changed"]
    assert (pair["before"]["strength"], pair["after"]["strength"]) == (5.0, 9.0)
    refused: list[tuple[dict[str, Any], int]] = [
        ({}, 400), ({"to": 1}, 400), ({"from": "x"}, 400), ({"from": -1}, 400), ({"from": 1.5}, 400),
        ({"from": head + 1}, 404), ({"from": 0, "to": head + 1}, 404), ({"from": 0, "to": "2026-01-01"}, 400),
        ({"from": "2026-13-01T00:00:00Z"}, 400),
    ]  # fmt: skip
    for query, status in refused:
        answer = await told.client.get("/api/log/diff", params=query)
        assert answer.status_code == status, query


async def test_a_time_is_the_last_event_written_by_then() -> None:
    """Whatever came between: a clock may have gone back."""
    log = MemoryLog()
    async with serving(log) as service:
        await service.ready()
    other, drafts = MemoryLog(), []
    for event in await log.read(0, 1000):
        time = f"2026-01-01T00:00:{event.position:02}.000000Z" if event.position != 5 else "2026-01-01T00:00:01.500000Z"
        fields = {name: getattr(event, name) for name in Draft.__struct_fields__}
        drafts.append(replace(Draft(**fields), time=time))
    await other.append(drafts, expected=0)
    async with serving(other) as service:
        for time, position in (
            ("2025-12-31T23:59:59Z", 0),
            ("2026-01-01T00:00:01Z", 1),
            ("2026-01-01T00:00:02.000001Z", 5),
            ("2026-01-01T00:00:04Z", 5),
            ("2026-01-01t01:00:06.5+01:00", 6),
            ("2025-12-31 16:00:07-08:00", 7),
        ):
            assert await get(service, "/api/state", at=time) == await get(service, "/api/state", at=position)
            assert (await get(service, "/api/log/diff", **{"from": time, "to": 0}))["from"] == position
        bare = await service.client.get(f"{service.url}/api/state?at=2026-01-01T00:00:06+00:00")
        assert bare.json()["position"] == 6, "a plus sign that was not escaped"
        now = (await get(service, "/api/state"))["position"]
        assert (await get(service, "/api/state", at="9999-12-31T23:59:59Z"))["position"] == now
        for wrong in ("yesterday", "", "2026-01-01", "2026-01-01T00:00:00", "٢026-01-01T00:00:00Z", "1e3"):
            answer = await service.client.get("/api/state", params={"at": wrong})
            assert (answer.status_code, answer.json()["param"]) == (400, "at"), wrong


async def test_explain(told: Running) -> None:
    first, second = await said(told, tag="t 7"), await said(told, tag="t 7", baseline=True)
    third = await said(told, tag=str(first["position"]))
    head = told.log.head.position
    one = await get(told, f"/api/generations/{first['generation_id']}")
    verification = await get(told, "/api/log/verify")
    for of in (first["generation_id"], str(first["position"]), str(one["finished"]["position"])):
        assert await get(told, "/api/log/explain", of=of) == {"generations": [one], "log": verification}
    both = (await get(told, "/api/log/explain", of="t 7"))["generations"]
    assert both == (await get(told, "/api/generations", tag="t 7"))["generations"]
    assert [each["generation_id"] for each in both] == [first["generation_id"], second["generation_id"]]
    assert (await get(told, "/api/log/explain", of="t 7", limit=1))["generations"] == both[:1]
    assert (await get(told, "/api/log/explain", of="t 7", after=one["position"]))["generations"] == both[1:]
    assert third["generation_id"] != first["generation_id"], "its tag is a position, which counts before"
    for wrong in ("nobody", "0", "1", str(head + 1), "9" * 30):
        answer = await told.client.get("/api/log/explain", params={"of": wrong})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), wrong
    asked: list[dict[str, Any]] = [{}, {"of": ""}, {"of": "x" * 129}, {"of": "t 7", "limit": 0},
                                   {"of": "t 7", "after": "x"}]  # fmt: skip
    for query in asked:
        assert (await told.client.get("/api/log/explain", params=query)).status_code == 400


async def test_the_environment_is_spelled_out(told: Running) -> None:
    made = await said(told)
    view = (await get(told, "/api/log/explain", of=made["generation_id"]))["generations"][0]
    loaded = next(event for event in await told.events() if event["type"] == "ModelLoaded")
    assert view["model"]["environment"] == loaded["data"]["model"]["environment"]
    assert view["model"]["environment"]["engine"] == "fake"


async def test_export(told: Running) -> None:
    made = await said(told)
    answer = await told.client.get("/api/log/export")
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    name = f"sae-actor-log-{told.log.log_id[:8]}-{told.log.head.position}"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert tar.getnames() == [f"{name}/{each}" for each in NAMES]
        files = {each: tar.extractfile(f"{name}/{each}") for each in ("log.json", "events.ndjson")}
        about, lines = (file.read() for file in files.values() if file is not None)
    assert json.loads(about)["head"] == {"position": told.log.head.position, "hash": told.log.head.hash}
    events = [json.loads(line) for line in lines.splitlines()]
    assert [{k: v for k, v in each.items() if k not in ("salt", "data_hash")} for each in events] == await told.events()
    assert any(each["data"].get("generation_id") == made["generation_id"] for each in events)


async def test_what_ends_an_export_before_its_end_is_seen_by_its_reader(told: Running) -> None:
    """A payload that is erased between the promise of so many bytes and their sending."""
    for _ in range(30):
        await said(told)
    rows = told.log._rows
    read, turn = told.log.rows, 0

    async def erased_meanwhile(after: int, limit: int) -> list[tuple[Any, ...]]:
        nonlocal turn
        turn += after == 0
        page = await read(after, limit)
        return page if turn < 2 else [(*row[:7], None, None, *row[9:]) if row[0] == 3 else row for row in page]

    told.log.rows = erased_meanwhile  # type: ignore[method-assign]
    with pytest.raises(httpx.RemoteProtocolError):
        await told.client.get("/api/log/export")
    del told.log.rows
    assert len(rows) == told.log.head.position
    assert (await told.client.get("/api/log/export")).status_code == 200


async def test_an_erased_beginning_is_hinted_at() -> None:
    log = MemoryLog()
    async with serving(log) as service:
        await service.ready()
        made = await said(service)
    at = made["position"] - 1
    log._rows[at] = log._rows[at]._replace(data=None, salt=None)
    record = ev.PayloadRedacted(redacted_position=made["position"], why="asked for")
    await log.append([ev.draft(record, time="2026-01-01T00:00:00.000000Z", command_id=None, principal="me")],
                     expected=log.head.position)  # fmt: skip
    async with serving(log) as service:
        (view,) = (await get(service, "/api/log/explain", of=str(made["position"])))["generations"]
        assert (view["erased"], view["generation_id"]) == (True, made["generation_id"])
        assert (await get(service, "/api/log/explain", of=made["generation_id"]))["log"]["ok"]
