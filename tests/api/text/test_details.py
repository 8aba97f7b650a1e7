"""`sae.details`: what the intervention did at each position, on every route with the extension object.

In this engine token n turns on the features n, n + 1 and n + 2, modulo 32, at 3, 2 and 1, and an edit does to its
feature what it is told to.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx_sse import aconnect_sse

from ..conforming import check_component
from ..conftest import Running, serving
from .test_routes import ASK, CHAT, chunks

pytestmark = pytest.mark.anyio

EDITS = [{"feature": 3, "strength": 7.0}, {"feature": 5, "strength": 2.0, "positions": "generated", "exclude": []}]
OWN = {"steering": EDITS, "details": True}
COMPONENTS = {"/v1/completions": "CompletionChunk", "/v1/chat/completions": "ChatCompletionChunk"}


def asked(path: str, **own: Any) -> dict[str, Any]:
    return {**(CHAT if "chat" in path else ASK), "sae": {**OWN, **own}}


async def answered(service: Running, path: str = "/v1/completions", /, **more: Any) -> dict[str, Any]:
    answer = await service.client.post(path, json={**asked(path), **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def read(token: int, feature: int) -> float:
    return {0: 3.0, 1: 2.0, 2: 1.0}.get((feature - token) % 32, 0.0)


def expected(sae_id: str, tokens: bytes, prompt: int) -> list[dict[str, Any]]:
    """Of the edits above."""
    found = []
    for at, token in enumerate(tokens):
        held = ([0] if at else []) + ([1] if at >= prompt else [])
        moved = {3: 7.0 * (0 in held), 5: 2.0 * (1 in held)}
        features = [
            {"sae_id": sae_id, "feature": n, "before": read(token, n), "after": read(token, n) + moved[n]}
            for n in moved
        ]
        found.append(
            {
                "position": at,
                "edits": [[sae_id, index] for index in held],
                "relative_norm": 0.25 if held else 0.0,
                "features": features,
            }
        )
    return found


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_of_every_position_that_was_run(service: Running, path: str) -> None:
    sae_id = await service.ready()
    bare = (await service.client.post(path, json={**asked(path), "sae": {"steering": EDITS}})).json()
    assert "positions" not in bare["sae"]
    whole = await answered(service, path)
    assert whole["choices"] == bare["choices"]
    receipt, found = whole["sae"]["receipt"], whole["sae"]["positions"]
    assert receipt == bare["sae"]["receipt"]
    said = whole["choices"][0]["text" if "chat" not in path else "message"]
    text: str = said if isinstance(said, str) else said["content"]
    prompt = receipt["tokens_prompt"]
    made = text.encode()[:-1]
    assert found[prompt:] == expected(sae_id, bytes(prompt) + made, prompt)[prompt:]
    if "chat" not in path:
        assert found == expected(sae_id, str(ASK["prompt"]).encode() + made, prompt)
    assert sum(bool(each["edits"]) for each in found) == receipt["tokens_edited"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("usage", [False, True])
async def test_each_chunk_brings_those_that_were_run_for_its_token(service: Running, path: str, usage: bool) -> None:
    await service.ready()
    whole = (await answered(service, path, stop=["ab"]))["sae"]["positions"]
    found = await chunks(service, path, {**asked(path), "stop": ["ab"], "stream_options": {"include_usage": usage}})
    for each in found:
        check_component(COMPONENTS[path], each)
    told = [each["sae"]["positions"] for each in found if "sae" in each]
    prompt = found[-1]["sae"]["receipt"]["tokens_prompt"]
    assert [len(each) for each in told] == [prompt, *[1] * (len(whole) - prompt), 0]
    assert [one for each in told for one in each] == whole
    assert all(set(each["sae"]) == {"positions"} for each in found[:-1] if "sae" in each)


async def test_each_choice_has_its_own(service: Running) -> None:
    await service.ready()
    more: dict[str, Any] = {"temperature": 1, "seed": 5, "n": 2, "prompt": ["abc", "hello"]}
    whole = await answered(service, **more)
    own = [choice["sae"]["positions"] for choice in whole["choices"]]
    assert whole["sae"]["positions"] == own[0]
    for at, prompt in enumerate(["abc", "abc", "hello", "hello"]):
        body = {**more, "prompt": prompt, "n": 1, "seed": 5 + at % 2}
        assert (await answered(service, **body))["sae"]["positions"] == own[at]
    found = await chunks(service, "/v1/completions", {**asked(""), **more})
    streamed: list[list[Any]] = [[], [], [], []]
    for each in found:
        check_component("CompletionChunk", each)
        for choice in each["choices"]:
            streamed[choice["index"]] += choice["sae"]["positions"]
    assert streamed == own
    assert [set(each["sae"]) == {"positions"} for each in found if "sae" in each] == [False], "the last one alone"


async def test_the_prompt_alone(service: Running) -> None:
    sae_id = await service.ready()
    more: dict[str, Any] = {"prompt": "abcd", "max_tokens": 0, "echo": True}
    whole = (await answered(service, **more))["sae"]["positions"]
    assert whole == expected(sae_id, b"abcd", 4)
    found = await chunks(service, "/v1/completions", {**asked(""), **more})
    assert [each["sae"]["positions"] for each in found if "sae" in each] == [whole]


async def test_both_sides_of_a_comparison(service: Running) -> None:
    """The baseline tells of the same features, which nothing moved."""
    sae_id = await service.ready()
    for details_of in ({}, {"details_of": [9]}):
        body = asked("/v1/completions", **details_of)
        whole = (await service.client.post("/api/compare", json=body)).json()
        steered, bare = (whole[name]["sae"]["positions"] for name in ("steered", "baseline"))
        assert any(each["edits"] for each in steered)
        for each, other in zip(bare, steered, strict=True):
            assert (each["edits"], each["relative_norm"]) == ([], 0.0)
            named = [(one["sae_id"], one["feature"]) for one in each["features"]]
            assert named == [(sae_id, n) for n in (3, 5, *details_of.get("details_of", ()))]
            assert named == [(one["sae_id"], one["feature"]) for one in other["features"]]
            assert all(one["before"] == one["after"] for one in each["features"])
        found = await chunks(service, "/api/compare", body)
        for name, told in (("steered", steered), ("baseline", bare)):
            mine = [each[name]["sae"]["positions"] for each in found if name in each]
            assert [one for each in mine for one in each] == told


async def test_a_response_has_them_all_at_its_end(service: Running) -> None:
    await service.ready()
    body = {"model": "default", "input": "Hello", "max_output_tokens": 8, "temperature": 0, "sae": OWN}
    whole = (await service.client.post("/v1/responses", json=body)).json()["sae"]["positions"]
    assert whole == (await answered(service, "/v1/chat/completions"))["sae"]["positions"]
    async with aconnect_sse(service.client, "POST", "/v1/responses", json={**body, "stream": True}) as source:
        events = [event.json() async for event in source.aiter_sse()]
    assert events[-1]["response"]["sae"]["positions"] == whole


async def test_texts_that_are_scored(service: Running) -> None:
    sae_id = await service.ready()
    variants = [
        {"name": "told", "sae": OWN},
        {"name": "not", "sae": {"steering": EDITS}},
        {"name": "bare", "sae": {"baseline": True, "details": True, "details_of": [9]}},
    ]
    body = {"inputs": [{"prompt": "abc", "continuation": "de"}], "variants": variants}
    results = (await service.client.post("/api/score", json=body)).json()["results"]
    assert results[0]["sae"]["positions"] == expected(sae_id, b"abcd", 3)
    assert "positions" not in results[1]["sae"]
    assert results[0]["logprobs"] == results[1]["logprobs"]
    for at, each in enumerate(results[2]["sae"]["positions"]):
        value = read(b"abcd"[at], 9)
        feature = {"sae_id": sae_id, "feature": 9, "before": value, "after": value}
        assert each == {"position": at, "edits": [], "relative_norm": 0.0, "features": [feature]}
    lines = (await service.client.post("/api/score", json=body, headers={"Accept": "application/x-ndjson"})).text
    assert [json.loads(line)["sae"].get("positions") for line in lines.splitlines()] == [
        each["sae"].get("positions") for each in results
    ]


async def test_more_of_them_than_an_answer_may_have(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.ready()
    monkeypatch.setattr("sae_actor.api.text.measuring.score.MOST_POSITIONS", 7)
    told = {"name": "told", "sae": OWN}
    body: dict[str, Any] = {"inputs": [{"prompt": "abcd"}, {"prompt": "efg"}], "variants": [{"name": "a"}, told]}
    assert (await service.client.post("/api/score", json=body)).status_code == 200
    body["inputs"].append({"prompt": "h"})
    problem = (await service.client.post("/api/score", json=body)).json()
    assert (problem["status"], problem["param"]) == (400, "variants[1].sae.details")


# — which features —


async def test_what_the_request_names_and_what_a_monitor_names(service: Running) -> None:
    sae_id = await service.ready()

    async def told(**own: Any) -> list[int]:
        each = (await answered(service, sae={"details": True, **own}))["sae"]["positions"][0]
        return [one["feature"] for one in each.get("features", ())]

    assert await told() == []
    assert await told(details_of=[4, {"feature": 2}, {"feature": 4, "sae_id": sae_id}]) == [4, 2]
    conditional = {"feature": 6, "strength": 1.0, "when": {"feature": 8, "above": 0.5}}
    assert await told(steering=[conditional], stop_when={"feature": 1, "above": 1e5}, details_of=[8, 0]) == [6, 8, 1, 0]
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": EDITS})
    assert await told() == [3, 5]
    assert await told(baseline=True) == []
    await service.command("Monitor", sae_id=sae_id, enabled=True, features=[9, 3])
    assert await told() == [3, 5, 9]
    await service.command("Monitor", sae_id=sae_id, enabled=True)
    assert await told() == [3, 5], "a Monitor of all features names none"


async def test_labels_stand_next_to_them(service: Running) -> None:
    sae_id = await service.ready()
    content = json.dumps({"feature": 3, "label": "three"})
    headers = {"Content-Type": "application/x-ndjson"}
    assert (await service.client.put(f"/api/saes/{sae_id}/labels", content=content, headers=headers)).is_success
    own = {"inputs": [{"prompt": "ab"}], "variants": [{"name": "told", "sae": OWN}]}
    score = (await service.client.post("/api/score", json=own)).json()["results"][0]
    for sae in ((await answered(service))["sae"], score["sae"]):
        for each in sae["positions"]:
            assert [(one["feature"], one.get("label")) for one in each["features"]] == [(3, "three"), (5, None)]
    found = await chunks(service, "/v1/completions", asked(""))
    assert found[0]["sae"]["positions"][0]["features"][0]["label"] == "three"


async def test_several_saes_and_one_that_is_not_read() -> None:
    async with serving(max_attachments=3) as service:
        first = await service.ready()
        second = await service.download("layer.2")
        vectors = (
            await service.client.post(
                "/api/vectors",
                json={"name": "v", "hook_point": {"kind": "resid_post", "layer": 1}, "rows": [[1.0] * 16]},
            )
        ).json()["sae_id"]
        for sae_id in (second, vectors):
            await service.command("Attach", sae_id=sae_id)
        interventions = [
            {"sae_id": second, "steering": [{"feature": 4, "strength": 1.0}]},
            {"sae_id": vectors, "steering": [{"feature": 0, "strength": 1.0}]},
            {"sae_id": first, "steering": [{"feature": 3, "strength": 1.0}, {"feature": 2, "strength": 0.0}]},
        ]
        own = {"interventions": interventions, "details": True}
        one = (await answered(service, sae=own))["sae"]["positions"][1]
        assert one["edits"] == [[first, 0], [first, 1], [second, 0], [vectors, 0]], "in the order of the attachments"
        assert [(each["sae_id"], each["feature"]) for each in one["features"]] == [(first, 3), (first, 2), (second, 4)]
        both = (await service.client.post("/api/compare", json={**ASK, "sae": own})).json()
        bare = both["baseline"]["sae"]["positions"][1]["features"]
        assert [(each["sae_id"], each["feature"]) for each in bare] == [(first, 3), (first, 2), (second, 4)]
        for named, code in (([3], "sae_ambiguous"), ([{"feature": 0, "sae_id": vectors}], "sae_unsupported")):
            answer = await service.client.post("/v1/completions", json=asked("", details_of=named))
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


# — refusals, and what goes on record —


@pytest.mark.parametrize(
    ("own", "status", "code"),
    [
        ({"details_of": [3]}, 400, "bad_request"),
        ({"details": True, "details_of": []}, 400, "bad_request"),
        ({"details": True, "details_of": [*range(65)]}, 400, "bad_request"),
        ({"details": True, "details_of": [{"feature": 3, "other": 1}]}, 400, "bad_request"),
        ({"details": 1}, 400, "bad_request"),
        ({"details": True, "details_of": [32]}, 422, "feature_out_of_range"),
        ({"details": True, "details_of": [{"feature": 3, "sae_id": "none"}]}, 404, "sae_not_found"),
    ],
)
async def test_refusals(service: Running, own: dict[str, Any], status: int, code: str) -> None:
    await service.ready()
    before = len(await service.events())
    answer = await service.client.post("/v1/completions", json={**ASK, "sae": own})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    scored = {"inputs": [{"prompt": "ab"}], "variants": [{"name": "a", "sae": own}]}
    answer = await service.client.post("/api/score", json=scored)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert len(await service.events()) == before


async def test_without_an_sae(service: Running) -> None:
    await service.ready(attach=False)
    positions = (await answered(service, sae={"details": True}))["sae"]["positions"]
    assert positions[3] == {"position": 3, "edits": [], "relative_norm": 0.0}
    answer = await service.client.post("/v1/completions", json={**ASK, "sae": {"details": True, "details_of": [3]}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "sae_not_attached")


async def test_nothing_of_it_is_on_record(service: Running) -> None:
    await service.ready()

    def without_ids(event: dict[str, Any]) -> dict[str, Any]:
        own = ("generation_id", "salt", "prompt_sha256", "output_sha256", "started_position")
        return {name: value for name, value in event["data"].items() if name not in own}

    before = len(await service.events())
    await answered(service, seed=1, sae={"steering": EDITS})
    plain = [without_ids(each) for each in (await service.events())[before:]]
    await answered(service, seed=1, sae={**OWN, "details_of": [9]})
    assert [without_ids(each) for each in (await service.events())[before + 2 :]] == plain
