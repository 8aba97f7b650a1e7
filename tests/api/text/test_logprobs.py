"""Log probabilities over `/v1`, in OpenAI's two shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ..conftest import MODEL, Running
from .test_routes import ASK, CHAT, chunks

pytestmark = pytest.mark.anyio


async def test_of_a_completion(service: Running) -> None:
    await service.ready()
    answer = (await service.client.post("/v1/completions", json={**ASK, "logprobs": 2})).json()
    choice = answer["choices"][0]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert told["token_logprobs"] == pytest.approx([-math.log(2)] * 8)
    assert told["text_offset"] == list(range(8))
    for token, top in zip(told["tokens"], told["top_logprobs"], strict=True):
        assert len(top) == 2
        assert max(top, key=top.__getitem__) == token
    only = (await service.client.post("/v1/completions", json={**ASK, "logprobs": 0})).json()["choices"][0]["logprobs"]
    assert only["top_logprobs"] == [{token: pytest.approx(-math.log(2))} for token in only["tokens"]]


async def test_of_a_chat(service: Running) -> None:
    await service.ready()
    body = {**CHAT, "logprobs": True, "top_logprobs": 3}
    choice = (await service.client.post("/v1/chat/completions", json=body)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == choice["message"]["content"]
    for each in content:
        assert bytes(each["bytes"]).decode() == each["token"]
        assert [set(top) for top in each["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 3
        assert each["top_logprobs"][0]["token"] == each["token"]
    bare = await service.client.post("/v1/chat/completions", json={**CHAT, "logprobs": True})
    assert [each["top_logprobs"] for each in bare.json()["choices"][0]["logprobs"]["content"]] == [[]] * 8


async def test_streamed_ones_are_the_unstreamed_ones(service: Running) -> None:
    await service.ready()
    service.engine.ends_after = 5
    stopped = {**CHAT, "logprobs": True, "top_logprobs": 1, "max_tokens": 20}
    whole = (await service.client.post("/v1/chat/completions", json=stopped)).json()["choices"][0]["logprobs"]
    found = [each["choices"][0]["logprobs"] for each in await chunks(service, "/v1/chat/completions", stopped)]
    assert [entry for each in found if each for entry in each["content"]] == whole["content"]
    assert len(whole["content"]) == 6
    completion = {**ASK, "logprobs": 1, "stop": ["zz"], "max_tokens": 20}
    told = (await service.client.post("/v1/completions", json=completion)).json()["choices"][0]["logprobs"]
    parts = [each["choices"][0]["logprobs"] for each in await chunks(service, "/v1/completions", completion)]
    for name, values in told.items():
        assert [value for part in parts if part for value in part[name]] == values


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
    ],
)
async def test_refused_by_name(service: Running, fields: dict[str, Any], param: str) -> None:
    await service.ready()
    answer = await service.client.post("/v1/chat/completions", json={**CHAT, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


HALF = -math.log(2)


async def completed(service: Running, **fields: Any) -> dict[str, Any]:
    answer = await service.client.post("/v1/completions", json={**ASK, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_prompt_that_is_echoed_has_its_own(service: Running) -> None:
    """First null; each chosen token in its dictionary as the same number."""
    await service.ready()
    prompt = str(ASK["prompt"])
    answer = await completed(service, echo=True, logprobs=2)
    choice, told = answer["choices"][0], answer["choices"][0]["logprobs"]
    assert choice["text"].startswith(prompt)
    assert "".join(told["tokens"]) == choice["text"]
    assert told["text_offset"] == list(range(len(prompt) + 8))
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    assert told["token_logprobs"][1:] == pytest.approx([HALF] * (len(prompt) + 7))
    names = ("tokens", "token_logprobs", "top_logprobs")
    for token, own, top in [*zip(*(told[name] for name in names), strict=True)][1:]:
        assert len(top) == 2
        assert top[token] == own == max(top.values())
    assert answer["usage"]["completion_tokens"] == 8
    bare = (await completed(service, logprobs=2))["choices"][0]["logprobs"]
    for name in names:
        assert told[name][len(prompt) :] == bare[name]
    only = (await completed(service, echo=True, logprobs=0))["choices"][0]["logprobs"]
    assert only["top_logprobs"][1:] == [{token: pytest.approx(HALF)} for token in only["tokens"][1:]]
    assert (await completed(service, echo=True))["choices"][0]["logprobs"] is None


async def test_the_prompt_alone(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 3, "strength": 2}]})
    prompt = str(ASK["prompt"])
    answer = await completed(service, echo=True, logprobs=1, max_tokens=0, sae={"top_k_features": 1})
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
    assert [len(each) for each in choice["logprobs"].values()] == [len(prompt)] * 4
    assert answer["usage"] == {"prompt_tokens": 16, "completion_tokens": 0, "total_tokens": 16}
    receipt = answer["sae"]["receipt"]
    assert (receipt["tokens_generated"], receipt["tokens_edited"], receipt["tokens_excluded"]) == (0, 15, 1)
    assert len(answer["sae"]["features"]) == 16
    started, finished = (await service.events())[-2:]
    assert started["data"]["sampling"]["max_tokens"] == 0
    assert (finished["data"]["finish_reason"], finished["data"]["edited"]) == ("length", [[1, 16]])
    without = await completed(service, echo=True, max_tokens=0)
    assert (without["choices"][0]["text"], without["choices"][0]["logprobs"]) == (prompt, None)


async def test_ids_are_scored_as_they_are_given(service: Running) -> None:
    """No BOS is added to them; a text gets the one that its tokenizer adds, which is its first token then."""
    service.engine.adds_bos = True
    await service.ready()
    ids = list(b"Once")
    given = (await completed(service, prompt=[ids, ids[:2]], echo=True, logprobs=1, max_tokens=0))["choices"]
    assert [each["logprobs"]["tokens"] for each in given] == [list("Once"), list("On")]
    assert [each["text"] for each in given] == ["Once", "On"]
    text = (await completed(service, prompt="Once", echo=True, logprobs=1, max_tokens=0))["choices"][0]
    assert text["logprobs"]["tokens"] == ["<end>", *"Once"]
    assert text["logprobs"]["text_offset"] == [0, 5, 6, 7, 8]
    assert text["text"] == "<end>Once"


async def test_a_prompt_as_long_as_the_context(service: Running) -> None:
    await service.ready()
    ids = [65] * 256
    whole = await completed(service, prompt=ids, echo=True, logprobs=1, max_tokens=0)
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == 256
    for fields in ({"max_tokens": 1}, {"max_tokens": 0, "echo": False}, {"prompt": [*ids, 65]}):
        refused = await service.client.post(
            "/v1/completions", json={"prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 1, **fields}
        )
        assert refused.status_code == 400, fields


@pytest.mark.parametrize("tokens", [0, 8])
@pytest.mark.parametrize("logprobs", [None, 2])
async def test_echoes_streamed_are_those_unstreamed(service: Running, tokens: int, logprobs: int | None) -> None:
    await service.ready()
    body = {**ASK, "prompt": [ASK["prompt"], "Hi é"], "echo": True, "logprobs": logprobs, "max_tokens": tokens}
    whole = (await completed(service, **body))["choices"]
    found = [choice for each in await chunks(service, "/v1/completions", body) for choice in each["choices"]]
    for choice in whole:
        mine = [each for each in found if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == "length"
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for each in mine if each["logprobs"] for value in each["logprobs"][name]] == values
        if logprobs is None:
            assert {each["logprobs"] is None for each in mine} == {True}
        assert mine[0]["text"] == ("Once upon a time", "Hi é")[choice["index"]]


async def test_as_lm_evaluation_harness_reads_them(service: Running) -> None:
    """Its loglikelihood requests, and what it makes of the answer: sums over the continuation, and whether it is
    greedy, by comparing numbers."""
    await service.ready()
    context, continuation = list(b"Question: 2 + 2 =\nAnswer:"), list(b" 4")
    body = {"model": MODEL, "prompt": [context + continuation], "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "seed": 1234, "echo": True}  # fmt: skip
    answer = (await service.client.post("/v1/completions", json=body)).json()
    (choice,) = sorted(answer["choices"], key=lambda each: each["index"])
    tokens = choice["logprobs"]["token_logprobs"][len(context) : -1]
    tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
    assert sum(tokens) == pytest.approx(2 * HALF)
    assert all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))


NAMED = {"logprobs_of": ["a", 33, "<end>"]}


@pytest.mark.parametrize(("path", "ask"), [("/v1/completions", ASK), ("/v1/chat/completions", CHAT)])
async def test_of_tokens_that_are_named(service: Running, path: str, ask: dict[str, Any]) -> None:
    await service.ready()
    answer = (await service.client.post(path, json={**ask, "sae": NAMED})).json()
    told = answer["sae"]["logprobs_of"]
    assert [(each["token"], each["token_id"], len(each["logprobs"])) for each in told] == [
        ("a", 97, 8), ("!", 33, 8), ("<end>", 256, 8),
    ]  # fmt: skip
    assert answer["choices"][0]["logprobs"] is None
    choice = answer["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert [each <= -math.log(2) for each in told[0]["logprobs"]] == [True] * 8
    assert [n for n, each in enumerate(told[0]["logprobs"]) if each == pytest.approx(-math.log(2))] == [
        n for n, letter in enumerate(text) if letter == "a"
    ]
    parts = await chunks(service, path, {**ask, "sae": NAMED})
    assert [each["sae"]["logprobs_of"] for each in parts if "sae" in each] == [told]
    several = (await service.client.post(path, json={**ask, "n": 2, "sae": NAMED})).json()
    assert [choice["sae"]["logprobs_of"][0]["token"] for choice in several["choices"]] == ["a", "a"]
    assert "logprobs_of" not in (await service.client.post(path, json=ask)).json()["sae"]


async def test_of_named_tokens_in_a_response(service: Running) -> None:
    await service.ready()
    body = {"input": "Hi", "max_output_tokens": 3, "sae": NAMED}
    told = (await service.client.post("/v1/responses", json=body)).json()["sae"]["logprobs_of"]
    assert [(each["token"], len(each["logprobs"])) for each in told] == [("a", 3), ("!", 3), ("<end>", 3)]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_of_what_is_not_one_token(service: Running, path: str) -> None:
    await service.ready()
    ask = ASK if path == "/v1/completions" else CHAT
    for named, param in (
        (["ab"], "sae.logprobs_of[0]"),
        ([97, 999], "sae.logprobs_of[1]"),
        ([""], "sae.logprobs_of[0]"),
    ):
        answer = await service.client.post(path, json={**ask, "sae": {"logprobs_of": named}})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), named
