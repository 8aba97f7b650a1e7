"""Vectors of one's own over HTTP: kept, attached, steered; what needs an encoder is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sae_actor.domain.evolve import fold

from ..conftest import Running, serving

pytestmark = pytest.mark.anyio

POINT = {"kind": "resid_post", "layer": 1}
ROWS = [[1.0, *[0.0] * 15], [0.5] * 16]
BODY = {"name": "sea", "hook_point": POINT, "rows": ROWS, "names": ["calm", "storm"]}


async def kept(service: Running, **changes: Any) -> str:
    answer = await service.client.post("/api/vectors", json={**BODY, **changes})
    assert answer.status_code in (200, 201), answer.text
    sae_id: str = answer.json()["sae_id"]
    return sae_id


async def attached(service: Running) -> str:
    await service.command("LoadModel", model="tiny")
    sae_id = await kept(service)
    assert (await service.client.post(f"/api/saes/{sae_id}/attach")).status_code == 200
    return sae_id


async def test_kept_once_and_on_record(service: Running) -> None:
    first = await service.client.post("/api/vectors", json=BODY)
    assert first.status_code == 201
    sae = first.json()
    assert sae["sae_id"] == f"sea-{sae['weights_sha256'][:8]}"
    shown = {name: sae[name] for name in ("name", "source", "status", "format", "architecture", "d_in", "d_sae")}
    assert shown == {
        "name": "sea",
        "source": "vectors",
        "status": "cached",
        "format": "vectors",
        "architecture": "vectors",
        "d_in": 16,
        "d_sae": 2,
    }
    assert (sae["hook_point"], sae["names"], sae["memory_bytes"]) == (POINT, ["calm", "storm"], 2 * 16 * 4)
    assert sae["made_from"] == {"kind": "rows"}
    again = await service.client.post("/api/vectors", json=BODY)
    assert (again.status_code, again.json()) == (200, sae)
    other = await kept(service, rows=[ROWS[1], ROWS[0]])
    assert other != sae["sae_id"]
    events = [each for each in await service.events() if each["type"].startswith("Download")]
    assert [each["type"] for each in events] == ["DownloadRequested", "DownloadCompleted"] * 3
    assert {each["data"]["source"] for each in events} == {"vectors"}
    assert [each["data"]["reused"] for each in events] == [False, False, True, True, False, False]
    assert events[1]["data"]["sae"]["names"] == ["calm", "storm"]


async def test_one_effect_for_one_key(service: Running) -> None:
    key = {"Idempotency-Key": "sea-1"}
    first = await service.client.post("/api/vectors", json=BODY, headers=key)
    again = await service.client.post("/api/vectors", json=BODY, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["sae_id"] == again.json()["sae_id"]
    other = await service.client.post("/api/vectors", json={**BODY, "name": "lake"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_deleted_vectors_free_their_bytes_and_may_come_again(service: Running) -> None:
    sae_id = await kept(service)
    gone = await service.client.delete(f"/api/saes/{sae_id}")
    assert (gone.status_code, gone.json()["freed_bytes"]) == (200, 2 * 16 * 4)
    assert service.hub.vectors == {}
    assert (await service.client.post("/api/vectors", json=BODY)).status_code == 201


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": []},
        {"rows": [[]]},
        {"rows": [[1.0, 2.0], [1.0]]},
        {"rows": [[0.0, 0.0]]},
        {"rows": [[1e39, 1.0]]},
        {"rows": [["1.0"]]},
        {"rows": [[1.0]] * 1025},
        {"rows": [[0.5] * 65536] * 17},
        {"names": ["calm"]},
        {"names": ["calm", "a\nb"]},
        {"rows": [[1.0]] * 600, "names": ["x" * 200] * 600},
        {"name": "../sea"},
        {"name": ""},
        {"hook_point": {"kind": "resid_post"}},
        {"hook_point": {"kind": "resid_post", "layer": 4096}},
        {"median_norm": 0},
        {"unknown": 1},
    ],
    ids=str,
)
async def test_bounds(service: Running, changes: dict[str, Any]) -> None:
    answer = await service.client.post("/api/vectors", json={**BODY, "names": None, **changes})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
    assert service.hub.vectors == {}


async def test_numbers_that_json_does_not_have(service: Running) -> None:
    for number in ("NaN", "Infinity", "1e999"):
        body = json.dumps({**BODY, "rows": [[1.0, "here"]]}).replace('"here"', number)
        headers = {"content-type": "application/json"}
        answer = await service.client.post("/api/vectors", content=body, headers=headers)
        assert answer.status_code == 400, number


async def test_a_log_that_is_only_read_keeps_nothing(service: Running) -> None:
    service.actor.read_only = "started with --read-only"
    answer = await service.client.post("/api/vectors", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "read_only")
    assert service.hub.vectors == {}
    service.actor.read_only = None


@pytest.mark.parametrize("method", ["add", "project", "set_projection"])
async def test_steered_by_what_needs_no_encoder(service: Running, method: str) -> None:
    sae_id = await attached(service)
    edit = {"feature": 1, "strength": 4.0, "method": method}
    put = await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
    assert (put.status_code, put.json()["features"][0]["method"]) == (200, method)
    text = (await service.client.post("/v1/completions", json={"model": "default", "prompt": "hi"})).json()
    (shown,) = text["sae"]["interventions"]
    assert (shown["sae_id"], shown["steering"][0]["strength"]) == (sae_id, 4.0)
    assert text["sae"]["receipt"]["tokens_edited"] > 0


async def test_what_needs_an_encoder_is_refused_by_name(service: Running) -> None:
    sae_id = await attached(service)
    client, steering = service.client, f"/api/saes/{sae_id}/steering"
    edit = {"feature": 1, "strength": 4.0}
    text = {"model": "default", "prompt": "hi"}
    asked = {
        "method set": client.put(steering, json={"features": [{**edit, "method": "set"}]}),
        "method scale": client.put(steering, json={"features": [{**edit, "method": "scale"}]}),
        "method cap": client.put(steering, json={"features": [{**edit, "method": "cap"}]}),
        "when": client.put(steering, json={"features": [{**edit, "when": {"feature": 0, "above": 1.0}}]}),
        "mode reconstruct": client.post(
            f"/api/saes/{sae_id}/attach", json={"mode": "reconstruct", "replace": True}
        ),
        "Monitor": client.post("/api/commands", json={"type": "Monitor", "sae_id": sae_id, "enabled": True}),
        "reading activations": client.post("/api/activations", json={"prompt": "hi"}),
    }  # fmt: skip
    for what, call in asked.items():
        answer = await call
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "sae_unsupported"), (what, answer.text)
        assert problem["detail"].startswith(f"{what} needs an encoder"), problem
        assert problem["sae_id"] == sae_id
        assert "add, project, set_projection" in problem["detail"]
    for own in (
        {"top_k_features": 3},
        {"stop_when": {"feature": 1, "above": 1.0}},
        {"steering": [{**edit, "method": "set"}]},
        {"interventions": [{"sae_id": sae_id, "mode": "reconstruct", "steering": []}]},
    ):
        answer = await client.post("/v1/completions", json={**text, "sae": own})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "sae_unsupported"), own
    assert (await client.get(steering)).json()["features"] == []


async def test_features_out_of_range_come_first(service: Running) -> None:
    sae_id = await attached(service)
    edit = {"feature": 2, "strength": 1.0, "method": "set"}
    answer = await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
    assert (answer.status_code, answer.json()["code"]) == (422, "feature_out_of_range")


async def test_next_to_an_sae_the_sae_alone_is_read() -> None:
    async with serving(max_attachments=3) as service:
        await service.ready()
        own = {"top_k_features": 2, "stop_when": {"feature": 1, "above": 1e5}, "baseline": True}
        text = {"model": "default", "prompt": "hi", "temperature": 0, "sae": own}

        async def read() -> list[Any]:
            answers = [
                await service.client.post("/api/activations", json={"prompt": "hi"}),
                await service.client.post("/v1/completions", json=text),
            ]
            assert [answer.status_code for answer in answers] == [200, 200]
            return [answers[0].json()["features"], answers[1].json()["sae"]["features"]]

        alone = await read()
        vectors = await kept(service)
        await service.command("Attach", sae_id=vectors)
        assert await read() == alone
        refused = await service.client.post("/api/activations", json={"prompt": "hi", "sae_id": vectors})
        assert (refused.status_code, refused.json()["code"]) == (422, "sae_unsupported")


async def test_a_restart_brings_them_back_with_their_steering() -> None:
    async with serving() as first:
        sae_id = await attached(first)
        edit = {"feature": 1, "strength": 4.0}
        await first.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
        log, hub = first.log, first.hub
    async with serving(log, hub=hub) as second:
        for _ in range(500):
            if (await second.client.get("/ready")).status_code == 200:
                break
        shown = (await second.client.get(f"/api/saes/{sae_id}/steering")).json()
        assert [(each["feature"], each["strength"]) for each in shown["features"]] == [(1, 4.0)]
        assert fold(await log.read(0, 10_000)).saes[sae_id].source == "vectors"


async def test_the_label_of_a_row_is_its_name(service: Running) -> None:
    sae_id = await attached(service)
    shown = (await service.client.get(f"/api/saes/{sae_id}/features/1")).json()
    assert (shown["label"], shown["bias"], shown["threshold"]) == ("storm", None, None)
