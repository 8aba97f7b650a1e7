"""The role `user`: its routes, its own generations, its presets; and a viewer of one SAE's events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sae_actor.api.operations import OPERATIONS
from sae_actor.config.access import Grant, digest_of

from ..conftest import Running, serving
from ..raw import exchange, request
from .test_guard import ROUTES, ask, bearer, host, refused

pytestmark = pytest.mark.anyio

FOR_USERS = {
    ("GET", "/v1/models"), ("GET", "/v1/models/{model_id}"), ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"),
    ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/tokenizer_info"),
    ("POST", "/api/activations"), ("POST", "/api/compare"), ("POST", "/api/contrast"), ("POST", "/api/lens"),
    ("POST", "/api/score"),
    ("GET", "/api/model"), ("GET", "/api/capabilities"), ("GET", "/api/catalog"), ("GET", "/api/presets"),
    ("GET", "/api/saes"), ("GET", "/api/saes/attachment"), ("GET", "/api/saes/{sae_id}"),
    ("GET", "/api/saes/{sae_id}/steering"), ("GET", "/api/saes/{sae_id}/compatibility"),
    ("GET", "/api/saes/{sae_id}/features/{feature}"),
    ("GET", "/api/generations"), ("GET", "/api/generations/{generation_id}"), ("GET", "/api/events"),
}  # fmt: skip
NOT_FOR_USERS = {
    ("POST", "/api/commands"), ("GET", "/api/commands/{command_id}"), ("GET", "/api/models/fit"),
    ("POST", "/api/saes/download"), ("POST", "/api/saes/{sae_id}/attach"), ("POST", "/api/saes/{sae_id}/detach"),
    ("POST", "/api/saes/{sae_id}/cancel"), ("DELETE", "/api/saes/{sae_id}"),
    ("PUT", "/api/saes/{sae_id}/steering"), ("DELETE", "/api/saes/{sae_id}/steering"),
    ("POST", "/api/vectors"), ("POST", "/api/directions"),
    ("GET", "/api/state"), ("GET", "/api/log"), ("GET", "/api/log/verify"), ("GET", "/api/log/diff"),
    ("GET", "/api/log/explain"), ("GET", "/api/log/export"), ("GET", "/api/log/backup"),
    ("POST", "/api/generations/search"), ("GET", "/metrics"), ("GET", "/schema"),
}  # fmt: skip
"""Each route that is not open is in one of the two: a new one has to be decided on."""

SECRETS = {name: f"secret-of-{name}" for name in ("olga", "uma", "ulf", "pia", "vera")}
ASK: dict[str, Any] = {"prompt": "Once", "max_tokens": 4, "temperature": 0}


def grant(name: str, role: Any, **fields: Any) -> Grant:
    return Grant(name, role, digest_of(SECRETS[name].encode()), **fields)


@pytest.fixture
async def secured() -> AsyncIterator[Running]:
    grants = (
        grant("olga", "operator"),
        grant("uma", "user"),
        grant("ulf", "user"),
        grant("pia", "user", presets=("calm",)),
        grant("vera", "viewer", sae="the-sae"),
    )
    async with serving(grants=grants, bearer=SECRETS["olga"]) as running:
        yield running


def client(service: Running, name: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.url, timeout=10, headers={"authorization": f"Bearer {SECRETS[name]}"})


def code(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, body.get("error", body)["code"]


def test_every_route_is_decided_on() -> None:
    closed = {(each.method, each.path) for each in OPERATIONS if not each.open}
    assert closed == FOR_USERS | NOT_FOR_USERS
    assert set() == FOR_USERS & NOT_FOR_USERS
    assert {(each.method, each.path) for each in OPERATIONS if each.users} == FOR_USERS


async def test_a_user_is_refused_on_every_route_that_is_not_its_own(secured: Running) -> None:
    before = secured.actor.state.position
    for each, path in ROUTES:
        headers = [host(secured), bearer(SECRETS["uma"]), ("Content-Type", "application/json")]
        if (each.method, each.path) == ("GET", "/api/events"):
            continue  # it does not end
        answer = await ask(secured, each, path, headers, b"{}" if each.method in ("POST", "PUT") else b"")
        if (each.method, each.path) in NOT_FOR_USERS:
            refused(each, answer, 403, "not for users")
            if each.method == "GET":
                head = await exchange(secured.url, request("HEAD", path, headers))
                assert head.status == 403
        else:
            assert answer.status != 403, (each.method, each.path, answer)
    assert secured.actor.state.position == before, "nothing of it is on record"


async def test_it_sees_its_own_generations_only(secured: Running) -> None:
    await secured.ready()
    async with client(secured, "uma") as uma, client(secured, "ulf") as ulf:
        made = [(await one.post("/v1/completions", json=ASK)).json()["sae"] for one in (uma, ulf, uma)]
        theirs = (await secured.client.post("/v1/completions", json=ASK)).json()["sae"]["generation_id"]
        ids = [each["generation_id"] for each in made]
        listed = (await uma.get("/api/generations")).json()["generations"]
        assert [each["generation_id"] for each in listed] == [ids[0], ids[2]]
        first = (await uma.get("/api/generations?limit=1")).json()["generations"]
        rest = (await uma.get(f"/api/generations?after={first[0]['position']}")).json()["generations"]
        assert [each["generation_id"] for each in (*first, *rest)] == [ids[0], ids[2]]
        assert (await ulf.get(f"/api/generations/{ids[1]}")).json()["principal"] == "ulf"
        for other in (ids[1], theirs, "gen-none"):
            assert code(await uma.get(f"/api/generations/{other}")) == (404, "not_found")
        assert len((await secured.client.get("/api/generations")).json()["generations"]) == 4


async def test_its_events(secured: Running) -> None:
    """Those of model, SAEs, attachments, steering and presets, and of its own generations."""
    sae_id = await secured.ready()
    await secured.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 2}]})
    await secured.command("Monitor", sae_id=sae_id, enabled=True)
    await secured.command("SavePreset", name="calm", interventions=[])
    await secured.client.post("/api/commands", json={"type": "Detach", "sae_id": "none"})
    async with client(secured, "uma") as uma:
        await secured.client.post("/v1/completions", json=ASK)
        own = (await uma.post("/v1/completions", json=ASK)).json()["sae"]["generation_id"]
        await secured.command("DeletePreset", name="calm")
        seen = await followed(uma, "PresetDeleted")
        assert [each["type"] for each in seen] == [
            "ModelLoadRequested", "ModelLoaded", "DownloadRequested", "DownloadCompleted", "AttachRequested",
            "SaeAttached", "SteeringChanged", "PresetSaved", "GenerationStarted", "GenerationFinished",
            "PresetDeleted",
        ]  # fmt: skip
        assert {each["data"]["generation_id"] for each in seen if each["type"].startswith("Gen")} == {own}
        some = await followed(uma, "GenerationFinished", "?types=SaeAttached,GenerationFinished")
        assert [each["type"] for each in some] == ["SaeAttached", "GenerationFinished"]
        for kind in ("activations", "CommandRejected", "MonitoringChanged", "ActorStarted"):
            assert code(await uma.get(f"/api/events?types={kind}")) == (403, "forbidden")


async def followed(one: httpx.AsyncClient, last: str, query: str = "") -> list[dict[str, Any]]:
    """The events of the stream up to the first of this type."""
    found = []
    async with one.stream("GET", f"/api/events{query}") as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                assert "position" in event, "only what is in the log came so far"
                found.append(event)
                if event["type"] == last:
                    return found
    pytest.fail("the stream ended")


async def test_its_presets_alone(secured: Running) -> None:
    sae_id = await secured.ready()
    for name in ("calm", "bold"):
        edit = {"feature": 3, "strength": 9.0}
        await secured.command("SavePreset", name=name, interventions=[{"sae_id": sae_id, "steering": [edit]}])
    allowed: tuple[dict[str, Any], ...] = (
        {"model": "default@calm"},
        {"sae": {"preset": "calm"}},
        {"sae": {"baseline": True}},
    )
    own = {"interventions": [{"sae_id": sae_id}]}
    denied: tuple[dict[str, Any], ...] = (
        {},
        {"sae": {}},
        {"model": "default@bold"},
        {"sae": {"preset": "bold"}},
        {"sae": {"steering": []}},
        {"sae": {"interventions": []}},
        {"sae": own},
        {"sae": {"baseline": True, "steering": []}},
    )
    routes = {
        "/v1/completions": ASK,
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 4},
        "/api/compare": ASK,
    }
    async with client(secured, "pia") as pia, client(secured, "uma") as uma:
        for path, body in routes.items():
            for more in allowed:
                if path == "/api/compare" and "baseline" in more.get("sae", {}):
                    continue
                answer = await pia.post(path, json={**body, **more})
                assert answer.status_code == 200, (path, more, answer.text)
            for more in denied:
                if path == "/api/compare" and more.get("sae", {}).get("baseline"):
                    continue
                assert code(await pia.post(path, json={**body, **more})) == (403, "forbidden"), (path, more)
            assert (await uma.post(path, json={**body, "sae": own})).status_code == 200
        read = {"prompt": "Once", "top_k": 2}
        for more in ({}, *allowed[1:]):
            assert (await pia.post("/api/activations", json={**read, **more})).status_code == 200
        others: tuple[dict[str, Any], ...] = ({"baseline": False}, {"preset": "bold"}, {"steering": []}, own)
        for wrong in others:
            assert code(await pia.post("/api/activations", json={**read, "sae": wrong})) == (403, "forbidden")
            lens = {"prompt": "Once", "layers": [1], "sae": wrong}
            assert code(await pia.post("/api/lens", json=lens)) == (403, "forbidden")
    begun = [event for event in await secured.events() if event["type"] == "GenerationStarted"]
    theirs = [event["data"] for event in begun if event["principal"] == "pia"]
    assert [each for each in theirs if not each["baseline"] and each["preset"]["name"] != "calm"] == []


async def test_an_unknown_preset_of_its_own(secured: Running) -> None:
    await secured.ready()
    async with client(secured, "pia") as pia:
        assert code(await pia.post("/v1/completions", json={**ASK, "model": "default@calm"})) == (
            404,
            "model_not_found",
        )


async def test_a_viewer_of_one_sae(secured: Running) -> None:
    await secured.ready()
    async with client(secured, "vera") as vera:
        for path in ("/api/log", "/api/events"):
            assert code(await vera.get(f"{path}?sae_id=other")) == (403, "forbidden")
        assert (await vera.get("/api/log")).json()["events"] == []
        assert (await vera.get("/api/log?sae_id=the-sae")).json()["events"] == []
        assert code(await vera.post("/v1/completions", json=ASK)) == (403, "forbidden")
        session = (await vera.get("/api/session")).json()
        assert (session["principal"], session["role"]) == ("vera", "viewer")
    async with client(secured, "uma") as uma:
        assert (await uma.get("/api/session")).json()["role"] == "user"
