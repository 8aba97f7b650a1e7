"""Activations of prompts, and those that come with a text."""

from __future__ import annotations

from typing import Any

import pytest

from ..conftest import Running, serving
from .test_routes import ASK, CHAT, chunks

pytestmark = pytest.mark.anyio

D_SAE = 32


def on(token: int, top_k: int) -> list[dict[str, Any]]:
    """What the fake engine says of one token."""
    return [{"feature": (token + n) % D_SAE, "activation": 3.0 - n} for n in range(min(top_k, 3))]


async def ask(service: Running, **body: Any) -> dict[str, Any]:
    answer = await service.client.post("/api/activations", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_of_a_prompt(service: Running) -> None:
    sae_id = await service.ready()
    before = len(await service.events())
    told = await ask(service, prompt="hé", top_k=2)
    ids = list("hé".encode())
    assert (told["token_ids"], "".join(told["tokens"]), told["is_special"]) == (ids, "hé", [False] * 3)
    assert told["features"] == [[], *(on(each, 2) for each in ids[1:])]
    assert told["is_sink"] == [True, False, False]
    assert told["sae_id"] == sae_id
    everything = await ask(service, token_ids=ids, sae_id=sae_id, exclude=[])
    assert everything["features"] == [on(each, 5) for each in ids]
    assert everything["is_sink"] == [True, False, False]
    assert (await ask(service, token_ids=[*ids, 256]))["is_special"] == [False, False, False, True]
    chat = await ask(service, messages=CHAT["messages"], top_k=1)
    assert len(chat["features"]) == len(chat["tokens"]) == len(chat["token_ids"]) > 5
    assert len(await service.events()) == before, "nothing of it goes on record"


async def test_of_features_that_are_named(service: Running) -> None:
    await service.ready()
    told = await ask(service, token_ids=[3], features=[4, 0, 3])
    assert told["features"] == [
        [{"feature": 4, "activation": 2.0}, {"feature": 0, "activation": 0.0}, {"feature": 3, "activation": 3.0}]
    ]


async def test_tokens_that_are_left_out(service: Running) -> None:
    await service.ready()
    ids = [97, 256, 98]
    for exclude, left in (
        (["sink"], {0}), (["special"], {1}), (["special", "sink"], {0, 1}), (["template"], set()), ([], set()),
    ):  # fmt: skip
        told = await ask(service, token_ids=ids, top_k=1, exclude=exclude)
        wanted = [[] if at in left else on(each, 1) for at, each in enumerate(ids)]
        assert (told["features"], told["is_sink"]) == (wanted, [True, False, False]), exclude
    chat = await ask(service, messages=[{"role": "user", "content": "hé"}], top_k=1, exclude=["template"])
    said = [token for token, row in zip(chat["tokens"], chat["features"], strict=True) if row]
    assert "".join(said) == "hé"
    named = await ask(service, token_ids=ids, features=[1], exclude=["sink", "special"])
    assert [len(row) for row in named["features"]] == [1, 1, 1]


async def test_under_an_intervention_that_is_asked_for(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 3}]})
    nothing = (await ask(service, prompt="a"))["intervention_sha256"]
    assert (await ask(service, prompt="a", sae={}))["intervention_sha256"] == nothing
    assert (await ask(service, prompt="a", sae={"baseline": True}))["intervention_sha256"] == nothing
    servers = (await ask(service, prompt="a", sae={"baseline": False}))["intervention_sha256"]
    text = (await service.client.post("/v1/completions", json=ASK)).json()["sae"]
    assert servers == text["intervention_sha256"] != nothing
    own = await ask(service, prompt="a", sae={"steering": [{"feature": 1, "strength": 4}]})
    assert own["intervention_sha256"] not in (nothing, servers)
    named = {"interventions": [{"sae_id": sae_id, "steering": [{"feature": 1, "strength": 4}]}]}
    assert (await ask(service, prompt="a", sae=named))["intervention_sha256"] == own["intervention_sha256"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_request"),
        ({"prompt": "a", "token_ids": [1]}, 400, "bad_request"),
        ({"prompt": ""}, 400, "bad_request"),
        ({"prompt": "a", "top_k": 0}, 400, "bad_request"),
        ({"prompt": "a", "features": []}, 400, "bad_request"),
        ({"prompt": "a", "exclude": ["first"]}, 400, "bad_request"),
        ({"prompt": "a", "exclude": None}, 400, "bad_request"),
        ({"prompt": "a", "features": [32]}, 422, "feature_out_of_range"),
        ({"prompt": "a", "sae_id": "none"}, 404, "sae_not_found"),
        ({"prompt": "a", "sae": {"baseline": True, "steering": []}}, 400, "bad_request"),
        ({"prompt": "a", "sae": {"steering": [{"feature": 99, "strength": 1}]}}, 422, "feature_out_of_range"),
        ({"prompt": "a", "sae": {"tag": "x"}}, 400, "bad_request"),
    ],
)
async def test_refusals(service: Running, body: dict[str, Any], status: int, code: str) -> None:
    await service.ready()
    answer = await service.client.post("/api/activations", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_of_what_is_attached() -> None:
    async with serving(max_attachments=2) as service:
        body = {"prompt": "a"}
        assert (await service.client.post("/api/activations", json=body)).json()["code"] == "model_not_loaded"
        first = await service.ready(attach=False)
        assert (await service.client.post("/api/activations", json=body)).json()["code"] == "sae_not_attached"
        named = await service.client.post("/api/activations", json={**body, "sae_id": first})
        assert (named.status_code, named.json()["code"]) == (409, "sae_not_attached")
        second = await service.download("layer.2")
        for sae_id in (first, second):
            await service.command("Attach", sae_id=sae_id)
        assert (await service.client.post("/api/activations", json=body)).json()["code"] == "sae_ambiguous"
        assert (await ask(service, prompt="a", sae_id=second))["sae_id"] == second
        both = (await service.client.post("/v1/completions", json={**ASK, "sae": {"top_k_features": 1}})).json()["sae"]
        assert set(both["features_by_sae"]) == {first, second}


# — with a text —


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_with_a_text(service: Running, path: str) -> None:
    sae_id = await service.ready()
    body = {**(ASK if path == "/v1/completions" else CHAT), "sae": {"top_k_features": 2}}
    answer = (await service.client.post(path, json=body)).json()
    receipt, features = answer["sae"]["receipt"], answer["sae"]["features"]
    assert len(features) == receipt["tokens_prompt"] + receipt["tokens_generated"] - 1
    said = answer["choices"][0]["text" if path == "/v1/completions" else "message"]
    text = said if isinstance(said, str) else said["content"]
    assert features[receipt["tokens_prompt"] :] == [on(each, 2) for each in text.encode()[:-1]]
    streamed = (await chunks(service, path, body))[-1]["sae"]
    assert streamed["features"] == features
    assert features[0] == []
    everywhere = {**body, "sae": {"top_k_features": 2, "top_k_exclude": []}}
    first = (await service.client.post(path, json=everywhere)).json()["sae"]["features"]
    assert (first[1:], len(first[0])) == (features[1:], 2)
    started = next(event["data"] for event in await service.events() if event["type"] == "GenerationStarted")
    assert [each["sae_id"] for each in started["watched"]] == [sae_id]
    without = (await service.client.post(path, json={**body, "sae": {"top_k_features": 0}})).json()["sae"]
    assert "features" not in without


async def test_with_a_text_that_nothing_edits(service: Running) -> None:
    await service.ready()
    body = {**ASK, "sae": {"top_k_features": 1, "baseline": True}}
    extension = (await service.client.post("/v1/completions", json=body)).json()["sae"]
    assert (extension["interventions"], extension["receipt"]["tokens_edited"]) == ([], 0)
    assert extension["features"][:16] == [[], *(on(each, 1) for each in str(ASK["prompt"]).encode()[1:])]


async def test_without_an_sae_there_are_none(service: Running) -> None:
    await service.ready(attach=False)
    answer = await service.client.post("/v1/completions", json={**ASK, "sae": {"top_k_features": 1}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "sae_not_attached")


async def test_a_feature_ends_the_text(service: Running) -> None:
    await service.ready()
    whole = (await service.client.post("/v1/completions", json={**ASK, "max_tokens": 20})).json()["choices"][0]["text"]
    token = whole.encode()[4]
    first = next(n for n, each in enumerate(whole.encode()) if (token - each) % D_SAE < 3)
    body = {**ASK, "max_tokens": 20, "sae": {"stop_when": {"feature": token % D_SAE, "above": 0.5}}}
    answer = (await service.client.post("/v1/completions", json=body)).json()
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["text"]) == ("stop", whole[: first + 2])
    assert answer["sae"]["finish_reason"] == "feature"
    found = await chunks(service, "/v1/completions", body)
    assert "".join(each["choices"][0]["text"] for each in found) == choice["text"]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["sae"]["finish_reason"] == "feature"
    started, finished = (await service.events())[-2:]
    assert started["data"]["stop_when"]["above"] == 0.5
    assert finished["data"]["finish_reason"] == "feature"
