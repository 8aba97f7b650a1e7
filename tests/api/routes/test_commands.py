"""`/api/commands`: acceptance, waiting, idempotency, preconditions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ..conftest import MODEL, REPOSITORY, Running, serving

pytestmark = pytest.mark.anyio


async def test_a_command_is_accepted_with_its_place(service: Running) -> None:
    answer = await service.client.post("/api/commands", json={"type": "LoadModel", "model": MODEL})
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted["status"] == "accepted"
    assert answer.headers["location"] == f"/api/commands/{accepted['command_id']}"
    first = next(e for e in await service.events() if e["position"] == accepted["position"])
    assert (first["type"], first["command_id"]) == ("ModelLoadRequested", accepted["command_id"])


async def test_prefer_wait_answers_with_the_outcome(service: Running) -> None:
    answer = await service.client.post(
        "/api/commands", json={"type": "LoadModel", "model": MODEL}, headers={"Prefer": "respond-async, wait=5"}
    )
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=5"
    outcome = answer.json()
    assert outcome["status"] == "completed"
    assert [event["type"] for event in outcome["events"]] == ["ModelLoadRequested", "ModelLoaded"]
    assert outcome["error"] is None
    again = await service.client.get(f"/api/commands/{outcome['command_id']}")
    assert again.json() == outcome


async def test_an_effect_that_does_not_work_out_is_failed_not_refused(service: Running) -> None:
    answer = await service.client.post(
        "/api/commands", json={"type": "LoadModel", "model": "none/such"}, headers={"Prefer": "wait=5"}
    )
    assert answer.status_code == 200
    outcome = answer.json()
    assert outcome["status"] == "failed"
    assert (outcome["error"]["code"], outcome["error"]["status"]) == ("model_not_found", 404)


async def test_waiting_gives_up_with_202(service: Running) -> None:
    service.engine.load_gate = asyncio.Event()
    answer = await service.client.post(
        "/api/commands", json={"type": "LoadModel", "model": MODEL}, headers={"Prefer": "wait=1"}
    )
    assert answer.status_code == 202
    service.engine.load_gate.set()
    done = await service.client.post(
        "/api/commands", json={"type": "LoadModel", "model": MODEL}, headers={"Prefer": "wait=5"}
    )
    assert done.json()["status"] == "completed"


@pytest.mark.parametrize(
    ("prefer", "applied"), [("wait=99999999", "wait=300"), ("wait=-1", None), ("wait=x", None), ("", None)]
)
async def test_garbage_in_prefer_is_no_wish(service: Running, prefer: str, applied: str | None) -> None:
    answer = await service.client.post(
        "/api/commands", json={"type": "LoadModel", "model": MODEL}, headers={"Prefer": prefer}
    )
    assert answer.headers.get("preference-applied") == applied
    assert answer.status_code == (202 if applied is None else 200)


async def test_the_same_key_has_one_effect(service: Running) -> None:
    body = {"type": "Download", "repository_id": REPOSITORY, "path": "layer.1"}

    async def send() -> dict[str, object]:
        answer = await service.client.post(
            "/api/commands", json=body, headers={"Idempotency-Key": "k1", "Prefer": "wait=5"}
        )
        found: dict[str, object] = answer.json()
        return found

    answers = await asyncio.gather(*(send() for _ in range(50)))
    assert all(each == answers[0] for each in answers)
    assert await send() == answers[0]
    types = [event["type"] for event in await service.events()]
    assert types.count("DownloadRequested") == types.count("DownloadCompleted") == 1


async def test_the_same_key_with_another_command_is_refused(service: Running) -> None:
    headers = {"Idempotency-Key": "k2"}
    first = {"type": "Download", "repository_id": REPOSITORY, "path": "layer.1"}
    assert (await service.client.post("/api/commands", json=first, headers=headers)).status_code == 202
    answer = await service.client.post("/api/commands", json={**first, "path": "layer.2"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_key_outlives_a_restart_and_a_refusal_is_not_remembered(service: Running) -> None:
    headers = {"Idempotency-Key": "k3", "Prefer": "wait=5"}
    refused = await service.client.post("/api/commands", json={"type": "Detach", "sae_id": "nope"}, headers=headers)
    assert refused.status_code == 404
    load = {"type": "LoadModel", "model": MODEL}
    first = (await service.client.post("/api/commands", json=load, headers=headers)).json()
    assert first["status"] == "completed"
    async with serving(service.log, hub=service.hub) as after:
        # The first service does not write while the second one runs.
        again = (await after.client.post("/api/commands", json=load, headers=headers)).json()
        assert again == first
        await after.actor.stop()
        service.actor.state = after.actor.state


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 129])
async def test_bad_keys_are_refused(service: Running, key: str) -> None:
    answer = await service.client.post(
        "/api/commands",
        json={"type": "UnloadModel"},
        headers=[(b"Idempotency-Key", key.encode())],
    )
    assert answer.status_code == 400


async def test_if_match_guards_against_a_state_that_moved_on(service: Running) -> None:
    sae_id = await service.ready()
    steering = f"/api/saes/{sae_id}/steering"
    seen = (await service.client.get(steering)).headers["etag"]
    edits = {"features": [{"feature": 1, "strength": 2}]}
    changed = await service.client.put(steering, json=edits, headers={"If-Match": seen})
    assert changed.status_code == 200
    stale = await service.client.put(steering, json=edits, headers={"If-Match": seen})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    future = await service.client.put(steering, json=edits, headers={"If-Match": '"9999"'})
    assert future.status_code == 412
    garbage = await service.client.put(steering, json=edits, headers={"If-Match": "9999"})
    assert garbage.status_code == 400
    fresh = await service.client.put(steering, json=edits, headers={"If-Match": changed.headers["etag"]})
    assert fresh.status_code == 200


async def test_generations_do_not_move_the_etag(service: Running) -> None:
    await service.ready()
    before = (await service.client.get("/api/saes")).headers["etag"]
    text = await service.client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3, "temperature": 0})
    assert text.status_code == 200
    assert (await service.client.get("/api/saes")).headers["etag"] == before


async def test_a_refusal_is_on_record(service: Running) -> None:
    answer = await service.client.post("/api/commands", json={"type": "Attach", "sae_id": "unknown"})
    assert (answer.status_code, answer.json()["code"]) == (404, "sae_not_found")
    last = (await service.events())[-1]
    assert last["type"] == "CommandRejected"
    assert last["data"]["error"]["code"] == "sae_not_found"


async def test_a_client_that_goes_away_cancels_nothing(service: Running) -> None:
    service.engine.load_gate = asyncio.Event()
    sent = asyncio.create_task(
        service.client.post("/api/commands", json={"type": "LoadModel", "model": MODEL}, headers={"Prefer": "wait=60"})
    )
    while service.actor.state.model is None:
        await asyncio.sleep(0.01)
    sent.cancel()
    service.engine.load_gate.set()
    outcome = await service.command("LoadModel", model=MODEL)
    assert outcome["status"] == "completed"
    types = [event["type"] for event in await service.events()]
    assert types.count("ModelLoadRequested") - types.count("ModelLoaded") in (0, 1)


async def test_two_attaches_at_the_same_instant(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    body = {"type": "Attach", "sae_id": sae_id}
    answers = await asyncio.gather(
        *(service.client.post("/api/commands", json=body, headers={"Prefer": "wait=5"}) for _ in range(2))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["code"] == "sae_already_attached"
    attachment = (await service.client.get("/api/saes/attachment")).json()
    assert attachment["is_attached"]
    assert len(attachment["attachments"]) == len(service.engine.residents) == 1
    await service.command("Detach", sae_id=sae_id)
    assert service.engine.residents == {}


async def test_asking_for_an_outcome_waits_for_it(service: Running) -> None:
    """By being told, not by looking again and again."""
    service.engine.load_gate = asyncio.Event()
    accepted = await service.client.post("/api/commands", json={"type": "LoadModel", "model": MODEL})
    where = accepted.headers["location"]
    assert (await service.client.get(where)).json()["status"] == "accepted"
    soon = await service.client.get(where, headers={"Prefer": "wait=1"})
    assert (soon.json()["status"], soon.headers["preference-applied"]) == ("accepted", "wait=1")
    reads = 0
    of_command = service.log.of_command

    async def counted(command_id: str) -> list[Any]:
        nonlocal reads
        reads += 1
        return await of_command(command_id)

    service.log.of_command = counted  # type: ignore[method-assign]
    asking = [asyncio.create_task(service.client.get(where, headers={"Prefer": "wait=30"})) for _ in range(3)]
    await asyncio.sleep(0.5)
    assert reads == 0
    service.engine.load_gate.set()
    outcomes = [(await each).json() for each in asking]
    assert [outcome["status"] for outcome in outcomes] == ["completed"] * 3
    assert outcomes[0]["events"][-1]["type"] == "ModelLoaded"
    assert reads <= 6


async def test_every_answer_to_a_command_tells_the_head(service: Running) -> None:
    sae_id = await service.ready()
    steering, one = f"/api/saes/{sae_id}/steering", {"features": [{"feature": 1, "strength": 1.0}]}
    steer = {"type": "Steer", "sae_id": sae_id, **one}
    answers = [
        await service.client.post("/api/commands", json=steer),
        await service.client.post("/api/commands", json=steer, headers={"Prefer": "wait=5"}),
        await service.client.put(steering, json=one),
        await service.client.delete(steering),
        await service.client.post(f"/api/saes/{sae_id}/detach"),
        await service.client.post(f"/api/saes/{sae_id}/attach"),
    ]
    events = {event["position"]: event["hash"] for event in await service.events()}
    for answer in answers:
        position, _, digest = answer.headers["log-head"].partition(":")
        assert int(position) >= answer.json()["position"]
        assert events[int(position)] == digest
    head = (await service.client.get("/api/log")).json()["head"]
    assert answers[-1].headers["log-head"] == f"{head['position']}:{head['hash']}"


async def test_unknown_commands_have_no_outcome(service: Running) -> None:
    answer = await service.client.get("/api/commands/nope")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
