"""The lens over HTTP, with the fake engine: a layer sees the token itself, the last one the token that follows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ...conftest import Running

pytestmark = pytest.mark.anyio


async def ask(service: Running, **body: Any) -> dict[str, Any]:
    answer = await service.client.post("/api/lens", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_each_layer(service: Running) -> None:
    await service.command("LoadModel", model="tiny")
    before = len(await service.events())
    told = await ask(service, prompt="abc", top=2)
    assert (told["tokens"], told["token_ids"]) == (["a", "b", "c"], [97, 98, 99])
    assert [each["layer"] for each in told["layers"]] == [0, 1, 2, 3]
    for layer in told["layers"][:3]:
        assert [[one["token"] for one in row] for row in layer["positions"]] == [["a", " "], ["b", " "], ["c", " "]]
        assert [one["logprob"] for one in layer["positions"][0]] == pytest.approx([-math.log(2), -2 * math.log(2)])
        assert layer["positions"][0][0]["token_id"] == 97
    assert [row[0]["token"] for row in told["layers"][3]["positions"]][:2] == ["b", "c"]
    some = await ask(service, token_ids=[97, 98], layers=[2, 0])
    assert [each["layer"] for each in some["layers"]] == [2, 0]
    assert {len(row) for each in some["layers"] for row in each["positions"]} == {5}
    chat = await ask(service, messages=[{"role": "user", "content": "hi", "name": "Ann"}], layers=[0])
    assert len(chat["layers"][0]["positions"]) == len(chat["tokens"]) > 2
    assert len(await service.events()) == before, "nothing of it goes on record"


async def test_under_an_intervention(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 3}]})
    bare = (await ask(service, prompt="ab"))["intervention_sha256"]
    servers = (await ask(service, prompt="ab", sae={"baseline": False}))["intervention_sha256"]
    own = (await ask(service, prompt="ab", sae={"steering": [{"feature": 1, "strength": 4}]}))["intervention_sha256"]
    assert len({bare, servers, own}) == 3


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_request"),
        ({"prompt": "a", "token_ids": [1]}, 400, "bad_request"),
        ({"prompt": "a", "id": "of nothing in the answer"}, 400, "bad_request"),
        ({"prompt": ""}, 400, "bad_request"),
        ({"prompt": "a", "layers": []}, 400, "bad_request"),
        ({"prompt": "a", "layers": [1, 1]}, 400, "bad_request"),
        ({"prompt": "a", "layers": [-1]}, 400, "bad_request"),
        ({"prompt": "a", "layers": [4]}, 422, "layer_out_of_range"),
        ({"prompt": "a", "top": 0}, 400, "bad_request"),
        ({"prompt": "a", "top": 101}, 400, "bad_request"),
        ({"prompt": "a", "sae": {"steering": [{"feature": 99, "strength": 1}]}}, 422, "feature_out_of_range"),
    ],
    ids=str,
)
async def test_refusals(service: Running, body: dict[str, Any], status: int, code: str) -> None:
    await service.ready()
    answer = await service.client.post("/api/lens", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_a_prompt_of_too_many_layers(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_actor.api.text.measuring.lens.MOST_ROWS", 11)
    await service.command("LoadModel", model="tiny")
    answer = await service.client.post("/api/lens", json={"prompt": "abc"})
    assert (answer.status_code, answer.json()["param"]) == (400, "layers")
    assert all(said in answer.json()["detail"] for said in ("3 tokens × 4 layers", "at most 11"))
    assert (await service.client.post("/api/lens", json={"prompt": "abc", "layers": [1, 2, 3]})).status_code == 200


async def test_without_a_model(service: Running) -> None:
    answer = await service.client.post("/api/lens", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")
