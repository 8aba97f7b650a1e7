"""Row 30: `If-Match` with positions that are not the one."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.actor.world import until

from .conftest import Running

pytestmark = pytest.mark.anyio

CASES = {
    "stale": ('"1"', 412),
    "in the future": ('"9999"', 412),
    "2^53": (f'"{2**53}"', 412),
    "2^63": (f'"{2**63}"', 400),
    "negative": ('"-1"', 400),
    "without quotes": ("9999", 400),
    "empty": ("", 400),
    "of no position": ('"abc"', 412),
}


async def test_headers_that_stand_twice(service: Running) -> None:
    """Neither is taken: two proxies could take the other one. Of Prefer there may be several, but one wait."""
    await service.command("LoadModel", model="tiny")
    before = await service.events()
    for twice in (
        [("Idempotency-Key", "a"), ("Idempotency-Key", "a")], [("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
        [("If-Match", "*"), ("If-Match", '"1"')], [("Prefer", "wait=1"), ("Prefer", "wait=2")],
        [("Prefer", "wait=1, wait=1")], [("Prefer", "wait=1"), ("Prefer", "x; wait=1")],
    ):  # fmt: skip
        answer = await service.client.post("/api/commands", json={"type": "UnloadModel"}, headers=twice)
        assert (answer.status_code, answer.json()["param"]) == (400, twice[0][0]), twice
    assert await service.events() == before
    several = [("Prefer", "respond-async"), ("Prefer", "wait=10"), ("Prefer", "handling=lenient")]
    answer = await service.client.post("/api/commands", json={"type": "UnloadModel"}, headers=several)
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=10")


async def test_row_30_positions_that_are_not_the_one(service: Running) -> None:
    await service.ready(attach=False)
    before = await service.events()
    for name, (header, status) in CASES.items():
        answer = await service.client.post("/api/commands", json={"type": "UnloadModel"}, headers={"If-Match": header})
        code = "precondition_failed" if status == 412 else "bad_request"
        assert (answer.status_code, answer.json()["code"]) == (status, code), name
    after = await service.events()
    # What was understood and refused is on record; nothing else happened.
    kinds = {(event["type"], event["data"]["error"]["code"]) for event in after[len(before) :]}
    assert kinds == {("CommandRejected", "precondition_failed")}


async def test_the_etag_of_an_answer_does_not_cover_what_another_changed_behind_it(service: Running) -> None:
    """Two commands that become durable together: each answer has the ETag of its own change."""
    sae_id = await service.ready()
    steering, append, stored, storing = (
        f"/api/saes/{sae_id}/steering",
        service.log.append,
        asyncio.Event(),
        asyncio.Event(),
    )

    async def held(*drafts: Any, **more: Any) -> Any:
        storing.set()
        await stored.wait()
        return await append(*drafts, **more)

    async def put(feature: int, **headers: str) -> httpx.Response:
        body = {"features": [{"feature": feature, "strength": 1.0}]}
        return await service.client.put(steering, json=body, headers=headers)

    service.log.append = held  # type: ignore[method-assign]
    first = asyncio.create_task(put(0))
    await asyncio.wait_for(storing.wait(), 5)
    asked = []
    for feature in (1, 2):
        asked.append(asyncio.create_task(put(feature)))
        await until(lambda: len(service.actor.mailbox) == len(asked))
    stored.set()
    await first
    ann, bob = await asyncio.gather(*asked)
    assert [each.headers["etag"] for each in (ann, bob)] == [f'"{each.json()["position"]}"' for each in (ann, bob)]
    refused = await put(3, **{"If-Match": ann.headers["etag"]})
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
    assert (await put(3, **{"If-Match": bob.headers["etag"]})).status_code == 200


async def test_nor_does_the_etag_of_an_outcome_that_is_asked_for_later(service: Running) -> None:
    sae_id = await service.ready()
    edits = {"features": [{"feature": 1, "strength": 1.0}], "sae_id": sae_id}
    sent = await service.client.post("/api/commands", json={"type": "Steer", **edits}, headers={"Idempotency-Key": "k"})
    await service.command("Steer", sae_id=sae_id, features=[])
    told = await service.client.get(sent.headers["location"])
    again = await service.client.post(
        "/api/commands", json={"type": "Steer", **edits}, headers={"Idempotency-Key": "k", "Prefer": "wait=1"}
    )
    position = f'"{sent.json()["position"]}"'
    assert [each.headers["etag"] for each in (sent, told, again)] == [position] * 3
    now = await service.client.get("/api/state")
    assert now.headers["etag"] != position
