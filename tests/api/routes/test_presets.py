"""Presets over HTTP: saved, listed, used by the model's name or by `sae.preset`, never in part."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio

EDIT: dict[str, Any] = {"feature": 3, "strength": -40.0}
OTHER: dict[str, Any] = {"feature": 5, "strength": 30.0}
ASK: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


async def save(service: Running, name: str, *interventions: dict[str, Any], **more: Any) -> None:
    await service.command("SavePreset", name=name, interventions=list(interventions), **more)


async def ready(service: Running) -> str:
    sae_id = await service.ready()
    await save(service, "calm", {"sae_id": sae_id, "steering": [EDIT]}, description="less of it")
    return sae_id


async def answered(service: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await service.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, body.get("error", body)["code"]


async def test_listed_with_what_is_kept(service: Running) -> None:
    assert (await service.client.get("/api/presets")).json() == {"presets": []}
    sae_id = await service.ready()
    service.engine.maxima = {3: 20.0}
    asked = {"feature": 3, "strength": 0.5, "unit": "max"}
    await save(service, "calm", {"sae_id": sae_id, "steering": [asked]}, description="less of it")
    answer = await service.client.get("/api/presets")
    (preset,) = answer.json()["presets"]
    assert {key: preset[key] for key in ("name", "description", "usable", "missing", "incompatible")} == {
        "name": "calm",
        "description": "less of it",
        "usable": True,
        "missing": [],
        "incompatible": [],
    }
    (sae,) = preset["interventions"]
    shown = [(each["strength"], each["unit"], each["exclude"]) for each in (*sae["steering"], *sae["asked"])]
    assert shown == [(10.0, "raw", ["sink"]), (0.5, "max", ["sink"])]
    assert sae["weights_sha256"] == service.actor.state.saes[sae_id].weights_sha256
    assert answer.headers["etag"] == f'"{preset["position"]}"'
    state = (await service.client.get("/api/state")).json()
    assert [each["name"] for each in state["presets"]] == ["calm"]


async def test_the_same_text_and_receipt_as_by_the_edits_themselves(service: Running) -> None:
    sae_id = await ready(service)
    own = {"interventions": [{"sae_id": sae_id, "steering": [EDIT]}]}
    for path, ask in (("/v1/completions", ASK), ("/v1/chat/completions", CHAT)):
        plain = await answered(service, path, {**ask, "sae": {"baseline": True}})
        steered = await answered(service, path, {**ask, "sae": own})
        for body in (
            {**ask, "model": f"{MODEL}@calm"},
            {**ask, "model": "default@calm"},
            {**ask, "sae": {"preset": "calm"}},
        ):
            found = await answered(service, path, body)
            assert [{**each, "sae": None} for each in found["choices"]] == [
                {**each, "sae": None} for each in steered["choices"]
            ]
            assert found["choices"] != plain["choices"]
            assert found["model"] == f"{MODEL}@calm"
            for name in ("receipt", "interventions", "intervention_sha256"):
                assert found["sae"][name] == steered["sae"][name]
            assert found["sae"]["preset"] == {"name": "calm", "position": service.actor.state.presets["calm"].position}
        assert "preset" not in steered["sae"]


async def test_on_every_route_that_takes_an_intervention(service: Running) -> None:
    sae_id = await ready(service)
    own = {"interventions": [{"sae_id": sae_id, "steering": [EDIT]}]}
    compared = await answered(service, "/api/compare", {**ASK, "model": "default@calm"})
    assert compared == {
        **compared,
        "steered": {**compared["steered"], "model": f"{MODEL}@calm"},
        "baseline": {**compared["baseline"], "model": MODEL},
    }
    assert compared["steered"]["sae"]["preset"]["name"] == "calm"
    assert compared["baseline"]["sae"]["interventions"] == []
    again = await answered(service, "/api/compare", {**ASK, "sae": {"preset": "calm"}})
    assert again["steered"]["choices"] == compared["steered"]["choices"]
    read = {"prompt": "Once", "top_k": 3}
    by_name = await answered(service, "/api/activations", {**read, "sae": {"preset": "calm"}})
    assert by_name == await answered(service, "/api/activations", {**read, "sae": own})
    response = await answered(service, "/v1/responses", {"input": "Hello", "model": "default@calm", "temperature": 0})
    assert (response["model"], response["sae"]["preset"]["name"]) == (f"{MODEL}@calm", "calm")
    tokens = await answered(service, "/tokenize", {"prompt": "Once", "model": f"{MODEL}@calm"})
    assert tokens["count"] > 0
    streamed = await service.client.post("/v1/completions", json={**ASK, "model": "default@calm", "stream": True})
    assert f'"model":"{MODEL}@calm"' in streamed.text
    assert '"preset":{"name":"calm"' in streamed.text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "default@none"}, (404, "model_not_found")),
        ({"model": "default@"}, (404, "model_not_found")),
        ({"model": "@calm"}, (404, "model_not_found")),
        ({"model": "other@calm"}, (404, "model_not_found")),
        ({"sae": {"preset": "none"}}, (404, "model_not_found")),
        ({"sae": {"preset": "No Name"}}, (400, "bad_request")),
        ({"model": "default@calm", "sae": {"steering": []}}, (400, "bad_request")),
        ({"model": "default@calm", "sae": {"baseline": True}}, (400, "bad_request")),
        ({"model": "default@calm", "sae": {"interventions": []}}, (400, "bad_request")),
        ({"model": "default@calm", "sae": {"preset": "calm"}}, (400, "bad_request")),
        ({"sae": {"preset": "calm", "steering": []}}, (400, "bad_request")),
        ({"sae": {"preset": "calm", "baseline": True}}, (400, "bad_request")),
    ],
)
async def test_refused(service: Running, body: dict[str, Any], expected: tuple[int, str]) -> None:
    await ready(service)
    for path, ask in (("/v1/completions", ASK), ("/v1/chat/completions", CHAT), ("/api/compare", ASK)):
        if path == "/api/compare" and "baseline" in body.get("sae", {}):
            continue
        assert refusal(await service.client.post(path, json={**ask, **body})) == expected
    if "sae" in body and "model" not in body:
        read = {"prompt": "Once", **body}
        assert refusal(await service.client.post("/api/activations", json=read)) == expected


async def test_used_while_an_sae_is_not_attached() -> None:
    async with serving(max_attachments=2) as service:
        one = await service.ready()
        two = await service.download("layer.2")
        await save(service, "both", {"sae_id": one, "steering": [EDIT]}, {"sae_id": two, "steering": [OTHER]})
        refused = await service.client.post("/v1/completions", json={**ASK, "model": "default@both"})
        assert refusal(refused) == (409, "sae_not_attached")
        assert refused.json()["error"]["missing"] == [two]
        problem = (await service.client.post("/api/compare", json={**ASK, "model": "default@both"})).json()
        assert problem["missing"] == [two]
        (preset,) = (await service.client.get("/api/presets")).json()["presets"]
        assert (preset["usable"], preset["missing"]) == (False, [two])
        listed = (await service.client.get("/v1/models")).json()["data"]
        assert listed[1]["sae"] == {"usable": False, "missing": [two], "incompatible": []}
        await service.command("Attach", sae_id=two)
        found = await answered(service, "/v1/completions", {**ASK, "model": "default@both"})
        assert [each["sae_id"] for each in found["sae"]["interventions"]] == [one, two]
        await service.command("Detach", sae_id=two)
        await service.command("Delete", sae_id=two)
        assert len((await service.client.get("/api/presets")).json()["presets"]) == 1


async def test_other_weights_under_the_same_id(service: Running) -> None:
    sae_id = await ready(service)
    shelf = service.hub.repositories["org/saes"]
    await service.command("Detach", sae_id=sae_id)
    path = service.actor.state.saes[sae_id].path or ""
    shelf[path] = type(shelf[path])(
        shelf[path].sae, tuple(type(each)(each.path, each.bytes, "e" * 64) for each in shelf[path].files)
    )
    await service.command("Download", repository_id="org/saes", path=path, force=True)
    await service.command("Attach", sae_id=sae_id)
    refused = await service.client.post("/v1/completions", json={**ASK, "model": "default@calm"})
    assert refusal(refused) == (422, "sae_incompatible")
    assert refused.json()["error"]["incompatible"] == [sae_id]
    (preset,) = (await service.client.get("/api/presets")).json()["presets"]
    assert (preset["usable"], preset["missing"], preset["incompatible"]) == (False, [], [sae_id])


async def test_saving_needs_the_records(service: Running) -> None:
    nothing = {"type": "SavePreset", "name": "x", "interventions": [{"sae_id": "none"}]}
    assert refusal(await service.client.post("/api/commands", json=nothing)) == (404, "sae_not_found")
    forget = {"type": "DeletePreset", "name": "x"}
    assert refusal(await service.client.post("/api/commands", json=forget)) == (404, "preset_not_found")
    for name in ("", "Calm", "a" * 65, "a b", "a@b"):
        bad = {"type": "SavePreset", "name": name, "interventions": []}
        assert refusal(await service.client.post("/api/commands", json=bad)) == (400, "bad_request")


async def test_a_preset_is_a_change_of_the_state(service: Running) -> None:
    await service.ready()
    before = (await service.client.get("/api/presets")).headers["etag"]
    body = {"type": "SavePreset", "name": "x", "interventions": []}
    first = await service.client.post("/api/commands", json=body, headers={"If-Match": before})
    assert first.status_code == 202
    again = await service.client.post("/api/commands", json=body, headers={"If-Match": before})
    assert refusal(again) == (412, "precondition_failed")


async def test_an_old_answer_is_explained_as_before(service: Running) -> None:
    sae_id = await ready(service)
    done = await answered(service, "/v1/completions", {**ASK, "model": "default@calm"})
    route = f"/api/generations/{done['sae']['generation_id']}"
    before = (await service.client.get(route)).json()
    assert before["preset"] == done["sae"]["preset"]
    assert before["intervention"][0]["steering_from"] == "preset"
    await save(service, "calm", {"sae_id": sae_id, "steering": [OTHER]})
    changed = await answered(service, "/v1/completions", {**ASK, "model": "default@calm"})
    assert changed["sae"]["preset"]["position"] > done["sae"]["preset"]["position"]
    assert changed["sae"]["interventions"] != done["sae"]["interventions"]
    await service.command("DeletePreset", name="calm")
    assert (await service.client.get(route)).json() == before
    assert refusal(await service.client.post("/v1/completions", json={**ASK, "model": "default@calm"}))[0] == 404


async def test_two_plain_clients_with_two_model_names(service: Running) -> None:
    """Neither knows of `sae`; each gets its own steering."""
    sae_id = await ready(service)
    await save(service, "bold", {"sae_id": sae_id, "steering": [OTHER]})
    service.engine.step_seconds = 0.005
    alone = {
        name: await answered(service, "/v1/completions", {**ASK, "sae": {"steering": [edit]}})
        for name, edit in (("calm", EDIT), ("bold", OTHER))
    }
    clients = [AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") for _ in alone]
    try:
        both = await asyncio.gather(
            *(
                client.completions.create(model=f"{MODEL}@{name}", **ASK)
                for client, name in zip(clients, alone, strict=True)
            )
        )
    finally:
        for client in clients:
            await client.close()
    for name, got in zip(alone, both, strict=True):
        assert got.model_extra is not None
        own, expected = got.model_extra["sae"], alone[name]
        assert got.choices[0].text == expected["choices"][0]["text"]
        assert (own["receipt"], own["intervention_sha256"], own["preset"]["name"]) == (
            expected["sae"]["receipt"],
            expected["sae"]["intervention_sha256"],
            name,
        )
    assert both[0].choices[0].text != both[1].choices[0].text


# — names —


async def test_models_are_listed_by_their_public_names(service: Running) -> None:
    await service.command("LoadModel", model="/srv/models/some-model/")
    await save(service, "nothing")
    listed = (await service.client.get("/v1/models")).json()["data"]
    assert [(each["id"], each["root"]) for each in listed] == [
        ("some-model", "some-model"),
        ("some-model@nothing", "some-model"),
    ]
    assert "sae" not in listed[0]
    assert (listed[1]["description"], listed[1]["sae"]["usable"]) == (None, True)
    for name in ("some-model", "default", "/srv/models/some-model/", "some-model@nothing", "default@nothing"):
        answer = await service.client.get(f"/v1/models/{name}")
        assert answer.json() == listed["@" in name], name
    for name in ("some-model@none", "default@", "models/some-model"):
        assert refusal(await service.client.get(f"/v1/models/{name}")) == (404, "model_not_found")


async def test_no_answer_of_v1_holds_a_path(service: Running) -> None:
    path = "/srv/models/some-model"
    service.engine.load_gate = asyncio.Event()
    loading = asyncio.create_task(service.command("LoadModel", model=path))
    while service.actor.state.model is None:
        await asyncio.sleep(0.001)
    seen = [await service.client.post("/v1/completions", json=ASK)]
    assert refusal(seen[0]) == (409, "model_not_loaded")
    assert "some-model" in seen[0].text
    service.engine.load_gate.set()
    await loading
    seen += [
        await service.client.post("/v1/completions", json=ASK),
        await service.client.post("/v1/completions", json={**ASK, "stream": True}),
        await service.client.post("/v1/chat/completions", json=CHAT),
        await service.client.post("/v1/responses", json={"input": "Hi"}),
        await service.client.post("/v1/completions", json={**ASK, "model": "gpt-5"}),
        await service.client.get("/v1/models"),
        await service.client.get("/v1/models/gpt-5"),
    ]
    assert [answer.status_code for answer in seen] == [409, 200, 200, 200, 200, 404, 200, 404]
    assert [answer.url.path for answer in seen if "/srv" in answer.text] == []
    assert seen[1].json()["model"] == "some-model"


async def test_a_name_of_the_settings(service: Running) -> None:
    service.context.model_name = "our@model"
    sae_id = await ready(service)
    assert [each["id"] for each in (await service.client.get("/v1/models")).json()["data"]] == [
        "our@model",
        "our@model@calm",
    ]
    for name in ("our@model", MODEL, "default"):
        plain = await answered(service, "/v1/completions", {**ASK, "model": name})
        assert (plain["model"], plain["sae"].get("preset")) == ("our@model", None)
        steered = await answered(service, "/v1/completions", {**ASK, "model": f"{name}@calm"})
        assert (steered["model"], steered["sae"]["interventions"][0]["sae_id"]) == ("our@model@calm", sae_id)
