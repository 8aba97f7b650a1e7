"""SAEs, attachment and steering as resources."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sae_actor.domain.events import envelope
from sae_actor.domain.weights import sae_id_of
from tests.fakes.hub import description, imported_id

from ..conftest import MODEL, REPOSITORY, Running, serving

pytestmark = pytest.mark.anyio


async def test_the_life_of_an_sae(service: Running) -> None:
    client = service.client
    await service.command("LoadModel", model=MODEL)
    answer = await client.post("/api/saes/download", json={"repository_id": REPOSITORY, "path": "layer.1"})
    assert answer.status_code == 202
    sae_id = answer.json()["sae_id"]
    assert sae_id == sae_id_of(REPOSITORY, "layer.1", "main")
    done = await client.get(f"/api/commands/{answer.json()['command_id']}")
    while done.json()["status"] == "accepted":
        await asyncio.sleep(0.01)
        done = await client.get(f"/api/commands/{answer.json()['command_id']}")
    sae = (await client.get(f"/api/saes/{sae_id}")).json()
    assert (sae["status"], sae["d_in"], sae["hook_point"]) == ("cached", 16, {"kind": "resid_post", "layer": 1})
    assert sae["file_size_bytes"] == sum(file["bytes"] for file in sae["files"]) > 0
    assert sae["memory_bytes"] == 4 * (16 * 32 + 32 + 32 * 16 + 16)

    attached = await client.post(f"/api/saes/{sae_id}/attach", json={})
    assert attached.status_code == 200
    assert attached.json()["status"] == "attached"
    assert attached.json()["layer"] == 1
    assert attached.json()["memory_bytes"] == sae["memory_bytes"]
    attachment = (await client.get("/api/saes/attachment")).json()
    assert attachment["is_attached"] is True
    assert attachment["sae_id"] == sae_id
    assert attachment["position"] == attached.json()["position"]
    assert attachment["attachments"][0]["sae_id"] == sae_id
    assert (await client.get(f"/api/saes/{sae_id}")).json()["status"] == "attached"
    assert (await client.delete(f"/api/saes/{sae_id}")).json()["code"] == "sae_in_use"

    detached = await client.post(f"/api/saes/{sae_id}/detach")
    assert detached.status_code == 200
    assert detached.json()["freed_bytes"] == sae["memory_bytes"]
    again = await client.post(f"/api/saes/{sae_id}/detach")
    assert (again.status_code, again.json()["code"]) == (409, "sae_not_attached")
    empty = (await client.get("/api/saes/attachment")).json()
    assert empty["is_attached"] is False
    assert empty["sae_id"] is None
    assert empty["attachments"] == []

    deleted = await client.delete(f"/api/saes/{sae_id}")
    assert deleted.status_code == 200
    assert deleted.json()["freed_bytes"] == sae["file_size_bytes"]
    assert (await client.delete(f"/api/saes/{sae_id}")).status_code == 404
    assert (await client.get("/api/saes")).json()["saes"] == []


async def test_a_delete_that_is_repeated_under_its_key_answers_the_same(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    headers = {"Idempotency-Key": "gone"}
    first = await service.client.delete(f"/api/saes/{sae_id}", headers=headers)
    second = await service.client.delete(f"/api/saes/{sae_id}", headers=headers)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()


async def test_steering_is_replaced_as_a_whole(service: Running) -> None:
    sae_id = await service.ready()
    path = f"/api/saes/{sae_id}/steering"
    edits = [{"feature": 1, "strength": 85, "exclude": ["sink"]}, {"feature": 2, "strength": 0, "method": "scale"}]
    put = await service.client.put(path, json={"features": edits})
    assert put.status_code == 200
    found = (await service.client.get(path)).json()
    assert found == put.json()
    assert [(e["feature"], e["strength"], e["method"], e["exclude"]) for e in found["features"]] == [
        (1, 85.0, "add", ["sink"]),
        (2, 0.0, "scale", ["sink"]),
    ]
    again = await service.client.put(path, json={"features": edits})
    assert again.json()["position"] == put.json()["position"] + 1
    cleared = await service.client.delete(path)
    assert cleared.json()["features"] == []
    off = await service.client.put(path, json={"features": edits[:1], "enabled": False})
    assert off.json()["enabled"] is False
    await service.command("Detach", sae_id=sae_id)
    for method in ("GET", "PUT", "DELETE"):
        body: dict[str, Any] | None = {"features": []} if method == "PUT" else None
        answer = await service.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "sae_not_attached")


async def test_one_at_a_time_unless_replaced(service: Running) -> None:
    first = await service.ready()
    second = await service.download("layer.2")
    refused = await service.client.post(f"/api/saes/{second}/attach", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "sae_already_attached")
    replaced = await service.client.post(f"/api/saes/{second}/attach", json={"replace": True})
    assert replaced.status_code == 200
    attachment = (await service.client.get("/api/saes/attachment")).json()
    assert [a["sae_id"] for a in attachment["attachments"]] == [second]
    types = [(e["type"], e["data"].get("reason")) for e in (await service.events())[-3:]]
    assert types == [("AttachRequested", None), ("SaeDetached", "replaced"), ("SaeAttached", None)]
    assert (await service.client.get(f"/api/saes/{first}")).json()["status"] == "cached"
    while len(service.engine.residents) != 1:
        await asyncio.sleep(0.01)


async def test_a_failed_replace_leaves_the_old_one(service: Running) -> None:
    from sae_actor.errors import OutOfMemoryError

    first = await service.ready()
    second = await service.download("layer.2")
    service.engine.attach_error = OutOfMemoryError("no room")
    failed = await service.client.post(f"/api/saes/{second}/attach", json={"replace": True})
    assert (failed.status_code, failed.json()["code"]) == (507, "out_of_memory")
    attachment = (await service.client.get("/api/saes/attachment")).json()
    assert attachment["sae_id"] == first


async def test_moving_keeps_the_steering(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 2}]})
    moved = await service.client.post(f"/api/saes/{sae_id}/attach", json={"layer": 2, "replace": True})
    assert moved.status_code == 200
    assert moved.json()["warnings"]
    attachment = (await service.client.get("/api/saes/attachment")).json()
    assert attachment["layer"] == 2
    assert [edit["feature"] for edit in attachment["steering"]] == [1]


async def test_several_when_the_service_allows_it() -> None:
    async with serving(max_attachments=2) as service:
        first = await service.ready()
        second = await service.download("layer.2")
        assert (await service.client.post(f"/api/saes/{second}/attach", json={})).status_code == 200
        attachment = (await service.client.get("/api/saes/attachment")).json()
        assert [a["sae_id"] for a in attachment["attachments"]] == [first, second]
        text = {"prompt": "hi", "max_tokens": 2, "sae": {"steering": [{"feature": 1, "strength": 1}]}}
        answer = await service.client.post("/v1/completions", json=text)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "sae_ambiguous")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("wide", {}, 422, "sae_incompatible"),
        ("layer.1", {"layer": 4}, 422, "layer_out_of_range"),
        ("layer.1", {"layer": 1, "hook_point": {"kind": "resid_post", "layer": 2}}, 400, "bad_request"),
        ("layer.1", {"hook_point": {"kind": "mlp_act", "layer": 2}}, 422, "sae_incompatible"),
    ],
)
async def test_what_does_not_fit(service: Running, path: str, body: dict[str, object], status: int, code: str) -> None:
    await service.command("LoadModel", model=MODEL)
    sae_id = await service.download(path)
    answer = await service.client.post(f"/api/saes/{sae_id}/attach", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if code == "sae_incompatible":
        assert {"sae_d_in", "model_d"} <= answer.json().keys()
    assert service.engine.residents == {}


async def test_the_near_side_of_a_norm(service: Running) -> None:
    """Over HTTP a hook point has one field more where it is not the activation itself, and none where it is."""
    await service.command("LoadModel", model=MODEL)
    sae_id = await service.download("layer.1")
    point = {"kind": "mlp_in", "layer": 2, "before": "gain"}
    answer = await service.client.post(f"/api/saes/{sae_id}/attach", json={"hook_point": point})
    assert (answer.status_code, answer.json()["hook_point"]) == (200, point)
    assert (await service.client.get("/api/saes/attachment")).json()["hook_point"] == point
    moved = {"layer": 1, "replace": True}
    answer = await service.client.post(f"/api/saes/{sae_id}/attach", json=moved)
    assert answer.json()["hook_point"] == {"kind": "resid_post", "layer": 1}
    for kind, before, status in (("mlp_out", "gain", 422), ("resid_post", "gain", 400), ("mlp_in", "weight", 400)):
        point = {"kind": kind, "layer": 2, "before": before}
        answer = await service.client.post(f"/api/saes/{sae_id}/attach", json={"hook_point": point, "replace": True})
        assert answer.status_code == status, answer.text


async def test_attach_without_a_model(service: Running) -> None:
    sae_id = await service.download("layer.1")
    answer = await service.client.post(f"/api/saes/{sae_id}/attach", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")


async def test_compatibility(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    good = (await service.client.get(f"/api/saes/{sae_id}/compatibility")).json()
    assert (good["compatible"], good["sae_d_in"], good["model_d"], good["layer"]) == (True, 16, 16, 1)
    other = (await service.client.get(f"/api/saes/{sae_id}/compatibility?layer=2")).json()
    assert other["compatible"]
    assert any("layer 1" in warning for warning in other["warnings"])
    bad = (await service.client.get(f"/api/saes/{sae_id}/compatibility?layer=9")).json()
    assert not bad["compatible"]
    assert bad["errors"][0]["code"] == "layer_out_of_range"


async def test_what_an_sae_was_trained_with_and_what_of_its_files_is_left(service: Running) -> None:
    """The record has it; the BOS that this model's tokenizer does not add is a warning, before attaching and at it."""
    told = {"context_size": "says which texts it was trained on"}
    sae = description(d_in=service.engine.hidden_size, prepend_bos=True, ignored=told, warnings=("odd",))
    service.hub.place("/saes/begun", sae)
    outcome = await service.command("Import", path="/saes/begun")
    recorded = outcome["events"][1]["data"]["sae"]
    assert (recorded["prepend_bos"], recorded["ignored"], recorded["warnings"]) == (True, told, ["odd"])
    sae_id = imported_id("/saes/begun")
    shown = (await service.client.get(f"/api/saes/{sae_id}")).json()
    assert (shown["prepend_bos"], shown["ignored"], shown["warnings"]) == (True, told, ["odd"])
    await service.command("LoadModel", model=MODEL)
    fits = (await service.client.get(f"/api/saes/{sae_id}/compatibility")).json()
    attached = (await service.client.post(f"/api/saes/{sae_id}/attach", json={})).json()
    assert fits["compatible"]
    for warnings in (fits["warnings"], attached["warnings"]):
        assert any("prepend_bos" in warning and "does not add" in warning for warning in warnings)
        assert "odd" in warnings


async def test_a_model_whose_texts_run_in_turn(service: Running) -> None:
    """Its capabilities say so and why, and whoever attaches an SAE is told, before and at it."""
    sae_id = await service.ready()
    assert (await service.client.get("/api/capabilities")).json()["model"]["in_turn"] is None
    service.engine.in_turn = "its attention cannot be replaced"
    await service.command("Detach", sae_id=sae_id)
    await service.command("LoadModel", model="org/other")
    running = (await service.client.get("/api/capabilities")).json()["model"]
    assert (running["batching"], running["in_turn"]) == (False, "its attention cannot be replaced")
    fits = (await service.client.get(f"/api/saes/{sae_id}/compatibility")).json()
    attached = (await service.client.post(f"/api/saes/{sae_id}/attach", json={})).json()
    told = "this model's texts run one after the other: its attention cannot be replaced"
    assert told in fits["warnings"]
    assert told in attached["warnings"]
    assert told in (await service.events())[-2]["data"]["warnings"]


async def test_what_the_files_of_an_sae_do_not_say(service: Running) -> None:
    sae_id = await service.ready()
    shown = (await service.client.get(f"/api/saes/{sae_id}")).json()
    assert (shown["prepend_bos"], shown["ignored"], shown["warnings"]) == (None, {}, [])


async def test_a_model_in_use_is_not_replaced(service: Running) -> None:
    await service.ready()
    for body in ({"type": "LoadModel", "model": "other"}, {"type": "UnloadModel"}):
        answer = await service.client.post("/api/commands", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "sae_in_use")
    same = await service.command("LoadModel", model=MODEL)
    assert [event["type"] for event in same["events"]] == ["ModelLoadRequested", "ModelLoaded"]
    model = (await service.client.get("/api/model")).json()
    assert (model["status"], model["model_id"], model["num_layers"]) == ("loaded", MODEL, 4)


async def test_import_and_delete_of_an_import(service: Running) -> None:
    outcome = await service.command("Import", path="/saes/demo")
    assert [e["type"] for e in outcome["events"]] == ["DownloadRequested", "DownloadCompleted"]
    sae_id = imported_id("/saes/demo")
    assert (await service.client.get(f"/api/saes/{sae_id}")).json()["name"] == "demo"
    outside = await service.client.post("/api/commands", json={"type": "Import", "path": "/etc"})
    assert (outside.status_code, outside.json()["code"]) in ((403, "forbidden"), (404, "not_found"))
    deleted = await service.client.delete(f"/api/saes/{sae_id}")
    assert deleted.json()["freed_bytes"] == 0


async def test_cancelling_a_download(service: Running) -> None:
    gate = service.hub.hold("download")
    answer = await service.client.post("/api/saes/download", json={"repository_id": REPOSITORY, "path": "layer.1"})
    sae_id = answer.json()["sae_id"]
    joined = await service.client.post("/api/saes/download", json={"repository_id": REPOSITORY, "path": "layer.1"})
    in_use = await service.client.delete(f"/api/saes/{sae_id}")
    assert (in_use.status_code, in_use.json()["code"]) == (409, "sae_in_use")
    cancelled = await service.client.post(f"/api/saes/{sae_id}/cancel")
    assert cancelled.status_code == 200
    assert service.hub.cancelled
    assert (await service.client.get(f"/api/saes/{sae_id}")).status_code == 404
    for accepted in (answer, joined):
        outcome = (await service.client.get(f"/api/commands/{accepted.json()['command_id']}")).json()
        assert outcome["status"] == "failed"
        assert outcome["error"]["reason"] == "cancelled"
    again = await service.client.post(f"/api/saes/{sae_id}/cancel")
    assert again.status_code == 404
    gate.set()


async def test_detach_does_not_wait_behind_a_download(service: Running) -> None:
    sae_id = await service.ready()
    gate = service.hub.hold("download")
    await service.client.post("/api/saes/download", json={"repository_id": REPOSITORY, "path": "layer.2"})
    detached = await asyncio.wait_for(service.client.post(f"/api/saes/{sae_id}/detach"), 1)
    assert detached.status_code == 200
    gate.set()


async def test_an_answer_is_made_of_the_events_that_were_just_appended(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event is read from the log again, none is decoded again."""
    sae_id = await service.ready(attach=False)
    edits = {"features": [{"feature": 1, "strength": 2}]}
    way = f"/api/saes/{sae_id}"
    wait = {"prefer": "wait=10"}
    with monkeypatch.context() as patched:
        patched.setattr(service.log, "of_command", None)
        patched.setattr(service.log, "read", None)
        patched.setattr(envelope, "_DECODERS", {})
        attached = await service.client.post(f"{way}/attach", json={})
        moved = await service.client.post(f"{way}/attach", json={"layer": 2, "replace": True})
        steered = await service.client.put(f"{way}/steering", json=edits)
        sent = await service.client.post(
            "/api/commands", json={"type": "Steer", "sae_id": sae_id, **edits}, headers=wait
        )
        detached = await service.client.post(f"{way}/detach")
        body = {"repository_id": REPOSITORY, "path": "layer.2"}
        downloaded = await service.client.post("/api/saes/download", json=body, headers=wait)
        deleted = await service.client.delete(way)
    assert (attached.json()["layer"], moved.json()["layer"]) == (1, 2)
    assert moved.json()["warnings"] != []
    assert steered.json()["features"][0]["strength"] == 2.0
    assert [event["type"] for event in sent.json()["events"]] == ["SteeringChanged"]
    assert [event["type"] for event in downloaded.json()["events"]] == ["DownloadRequested", "DownloadCompleted"]
    assert (detached.json()["status"], deleted.json()["status"]) == ("detached", "deleted")
    assert deleted.json()["position"] == service.actor.state.position


async def test_a_moved_sae_is_answered_with_all_events_of_its_command(service: Running) -> None:
    sae_id = await service.ready()
    asked = {"type": "Attach", "sae_id": sae_id, "layer": 2, "replace": True}
    answer = await service.client.post("/api/commands", json=asked, headers={"prefer": "wait=10"})
    later = await service.client.get(f"/api/commands/{answer.json()['command_id']}")
    assert [event["type"] for event in answer.json()["events"]] == ["AttachRequested", "SaeDetached", "SaeAttached"]
    assert answer.json() == later.json()
