"""What was active for each answer, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from sae_actor.cli.render.explanation import explanation
from sae_actor.domain import events as ev
from sae_actor.domain.events import Draft
from tests.fakes.log import MemoryLog

from ..conftest import Running

pytestmark = pytest.mark.anyio

ASK = {"model": "default", "prompt": "Once", "max_tokens": 4, "temperature": 0}


async def text(service: Running, **sae: Any) -> dict[str, Any]:
    """Make a text; the object `sae` of its answer, with its fingerprint."""
    answer = await service.client.post("/v1/completions", json={**ASK, "sae": sae})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return {**body["sae"], "system_fingerprint": body["system_fingerprint"]}


async def steer(service: Running, sae_id: str, strength: float) -> int:
    body = {"features": [{"feature": 3, "strength": strength}]}
    answer = await service.client.put(f"/api/saes/{sae_id}/steering", json=body)
    position: int = answer.json()["position"]
    return position


async def listed(service: Running, **query: Any) -> list[dict[str, Any]]:
    answer = await service.client.get("/api/generations", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["generations"]
    return found


async def test_an_answer_is_explained(service: Running) -> None:
    sae_id = await service.ready()
    changed = await steer(service, sae_id, 5.0)
    made = await text(service, tag="t")
    answer = await service.client.get(f"/api/generations/{made['generation_id']}")
    assert answer.status_code == 200
    assert "etag" in answer.headers
    view = answer.json()
    assert view["generation_id"] == made["generation_id"]
    assert (view["position"], view["tag"], view["principal"]) == (made["position"], "t", "local")
    assert view["intervention_sha256"] == made["intervention_sha256"]
    assert view["digest"] == {"recomputed": made["intervention_sha256"], "agrees": True, "state_agrees": True}
    assert view["receipt"] == {**view["receipt"], **made["receipt"]}
    assert made["system_fingerprint"] == f"fp_{view['model']['environment_sha256'][:24]}"
    (sae,) = view["intervention"]
    assert (sae["sae_id"], sae["steering"][0]["strength"]) == (sae_id, 5.0)
    assert (sae["since"][-1]["type"], sae["since"][-1]["position"]) == ("SteeringChanged", changed)
    await steer(service, sae_id, 9.0)
    assert (await service.client.get(f"/api/generations/{made['generation_id']}")).json() == view


async def test_the_list(service: Running) -> None:
    sae_id = await service.ready()
    assert await listed(service) == []
    made = []
    for number in range(5):
        await steer(service, sae_id, float(number))
        made.append(await text(service, tag="even" if number % 2 == 0 else "odd"))
    names = [each["generation_id"] for each in made]
    whole = await listed(service)
    assert [each["generation_id"] for each in whole] == names
    assert [each["intervention"][0]["steering"][0]["strength"] for each in whole] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert await listed(service, tag="even") == whole[::2]
    assert await listed(service, tag="none") == []
    pages = await listed(service, limit=2)
    while page := await listed(service, limit=2, after=pages[-1]["position"]):
        pages += page
    assert pages == whole
    assert await listed(service, tag="even", after=made[0]["position"], limit=1) == whole[2:3]
    for each in whole:
        assert (await service.client.get(f"/api/generations/{each['generation_id']}")).json() == each


async def test_own_and_baseline(service: Running) -> None:
    await service.ready()
    own = await text(service, steering=[{"feature": 4, "strength": 2}])
    bare = await text(service, baseline=True)
    first, second = await listed(service)
    assert (first["generation_id"], first["own_steering"], first["baseline"]) == (own["generation_id"], True, False)
    assert first["intervention"][0]["steering_from"] == "request"
    assert (second["generation_id"], second["own_steering"], second["baseline"]) == (bare["generation_id"], False, True)
    assert second["intervention"] == []
    assert all(view["digest"]["agrees"] and view["digest"]["state_agrees"] for view in (first, second))


async def test_one_that_still_runs(service: Running) -> None:
    await service.ready()
    service.engine.step_seconds = 0.05
    asking = asyncio.create_task(text(service, tag="slow"))
    while not (found := await listed(service)):
        await asyncio.sleep(0.01)
    assert (found[0]["tag"], found[0]["finished"], found[0]["finish_reason"]) == ("slow", None, None)
    assert found[0]["state"] == "running"
    made = await asking
    (view,) = await listed(service)
    assert (view["generation_id"], view["finish_reason"]) == (made["generation_id"], "length")
    assert view["state"] == "finished"


async def test_one_that_the_service_did_not_live_to_end(
    serve: Callable[..., AbstractAsyncContextManager[Running]],
) -> None:
    """Its end is on record, so `finished` names an event: `state` says that it never finished."""
    cut = MemoryLog()
    async with serve() as service:
        await service.ready()
        service.engine.step_seconds = 0.05
        asking = asyncio.create_task(text(service))
        while not await listed(service):
            await asyncio.sleep(0.01)
        for event in await service.log.read(0, 100):
            fields = {name: getattr(event, name) for name in Draft.__struct_fields__}
            await cut.append([Draft(**fields)], expected=event.position - 1)
        await asking
    async with serve(log=cut) as service:
        (view,) = await listed(service)
        assert (view["state"], view["finish_reason"]) == ("interrupted", "interrupted")
        assert view["finished"]["type"] == "GenerationFinished"


async def test_the_text_where_it_is_recorded(
    serve: Callable[..., AbstractAsyncContextManager[Running]],
) -> None:
    async with serve(record_text=True) as service:
        await service.ready()
        made = await text(service)
        view = (await service.client.get(f"/api/generations/{made['generation_id']}")).json()
        assert len(view["output_token_ids"]) == view["tokens_generated"] == 4
        assert isinstance(view["text"], str)


async def test_what_of_the_text_is_left_out_is_told(
    serve: Callable[..., AbstractAsyncContextManager[Running]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(record_text=True) as service:
        service.engine.context_length = 10**5
        await service.ready()
        monkeypatch.setattr(ev, "MAX_PAYLOAD_BYTES", 4096)
        made = await service.client.post("/v1/completions", json={**ASK, "prompt": "long " * 1000})
        view = (await service.client.get(f"/api/generations/{made.json()['id']}")).json()
        assert (view["prompt_token_ids"], len(view["output_token_ids"])) == (None, 4)
        assert (view["left_out"]["code"], view["left_out"]["fields"]["left_out"]) == ("too_large", ["prompt_token_ids"])
        log = {"ok": True, "events": 1, "head": {"position": 1, "hash": ""}}
        assert "  left out   the prompt: GenerationFinished takes " in explanation({**view, "log": log})


async def test_what_is_refused(service: Running) -> None:
    missing = await service.client.get("/api/generations/gen-none")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    for query in ({"after": "-1"}, {"after": "x"}, {"limit": "0"}, {"limit": "1001"}):
        refused = await service.client.get("/api/generations", params=query)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


async def test_a_token_is_asked_for(serve: Callable[..., AbstractAsyncContextManager[Running]]) -> None:
    async with serve(tokens=("secret",)) as service:
        for path in ("/api/generations", "/api/generations/g"):
            bare = await service.client.get(path, headers={"authorization": ""})
            assert bare.status_code == 401
