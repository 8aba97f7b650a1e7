"""Text over `/v1`: shapes, interventions, receipts, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from httpx_sse import aconnect_sse

from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


async def chunks(service: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with aconnect_sse(service.client, "POST", path, json={**body, "stream": True}) as source:
        async for event in source.aiter_sse():
            if event.data == "[DONE]":
                return found
            found.append(event.json())
    raise AssertionError("the stream did not end with [DONE]")


async def test_a_completion(service: Running) -> None:
    sae_id = await service.ready()
    answer = (await service.client.post("/v1/completions", json=ASK)).json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    assert answer["system_fingerprint"].startswith("fp_")
    choice = answer["choices"][0]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert answer["usage"] == {"prompt_tokens": 16, "completion_tokens": 8, "total_tokens": 24}
    extension = answer["sae"]
    assert [active["sae_id"] for active in extension["interventions"]] == [sae_id]
    assert extension["interventions"][0]["steering"] == []
    assert extension["receipt"]["tokens_prompt"] == 16
    assert extension["receipt"]["tokens_edited"] == 0
    started, finished = (await service.events())[-2:]
    assert (started["type"], finished["type"]) == ("GenerationStarted", "GenerationFinished")
    assert started["principal"] == finished["principal"] == "local"
    assert extension["generation_id"] == answer["id"] == finished["data"]["generation_id"]
    assert extension["position"] == started["position"]
    assert extension["intervention_sha256"] == finished["data"]["intervention_sha256"]


async def test_a_chat(service: Running) -> None:
    await service.ready()
    answer = (await service.client.post("/v1/chat/completions", json=CHAT)).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert isinstance(answer["choices"][0]["message"]["content"], str)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_streamed_text_is_the_unstreamed_text(service: Running, path: str) -> None:
    await service.ready()
    body = ASK if path == "/v1/completions" else CHAT
    whole = (await service.client.post(path, json=body)).json()["choices"][0]
    found = await chunks(service, path, {**body, "stream_options": {"include_usage": True}})
    if path == "/v1/completions":
        assert "".join(c["choices"][0]["text"] for c in found if c["choices"]) == whole["text"]
    else:
        assert found[0]["choices"][0]["delta"]["role"] == "assistant"
        streamed = "".join(c["choices"][0]["delta"].get("content", "") for c in found if c["choices"])
        assert streamed == whole["message"]["content"]
    assert [c["choices"][0]["finish_reason"] for c in found if c["choices"]][-1] == "length"
    assert found[-1]["usage"]["completion_tokens"] == 8
    assert found[-1]["sae"]["receipt"]["tokens_generated"] == 8
    assert len({c["id"] for c in found}) == 1


async def test_the_intervention_of_the_moment_and_of_the_request(service: Running) -> None:
    sae_id = await service.ready()

    async def text(sae: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        answer = await service.client.post("/v1/completions", json={**ASK, **({"sae": sae} if sae else {})})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"], answer.json()["sae"]

    edit = {"feature": 3, "strength": 9}
    bare, _ = await text({"baseline": True})
    assert (await text())[0] == bare
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
    steered, extension = await text()
    assert steered != bare
    assert extension["interventions"][0]["steering"][0]["strength"] == 9.0
    assert extension["receipt"]["tokens_edited"] > 0
    assert (await text({"baseline": True}))[0] == bare
    assert (await text({"baseline": True}))[1]["interventions"] == []
    assert (await text({"steering": []}))[0] == bare
    own, _ = await text({"steering": [{"feature": 4, "strength": 9}]})
    assert own not in (bare, steered)
    named, _ = await text({"interventions": [{"sae_id": sae_id, "steering": [{"feature": 4, "strength": 9}]}]})
    assert named == own
    assert (await text())[0] == steered
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit], "enabled": False})
    assert (await text())[0] == bare
    await service.command("Detach", sae_id=sae_id)
    refused = await service.client.post("/v1/completions", json={**ASK, "sae": {"steering": [edit]}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "sae_not_attached")


async def test_the_prompt_is_on_record_as_a_salted_digest(service: Running) -> None:
    await service.ready()
    await service.client.post("/v1/completions", json={**ASK, "sae": {"tag": "t-1"}})
    started, finished = (await service.events())[-2:]
    assert started["data"]["tag"] == "t-1"
    ids = b"".join(byte.to_bytes(4, "little") for byte in ASK["prompt"].encode())
    salt = bytes.fromhex(finished["data"]["salt"])
    assert finished["data"]["prompt_sha256"] == hashlib.sha256(salt + ids).hexdigest()
    assert ASK["prompt"] not in json.dumps(await service.events())


async def test_text_is_recorded_where_asked() -> None:
    async with serving(record_text=True) as service:
        await service.ready()
        answer = (await service.client.post("/v1/completions", json=ASK)).json()
        finished = (await service.events())[-1]["data"]
        assert finished["text"] == answer["choices"][0]["text"]
        assert bytes(finished["prompt_token_ids"]).decode() == ASK["prompt"]


async def test_seeds(service: Running) -> None:
    await service.ready()
    body = {**ASK, "temperature": 1, "seed": 5}
    first = (await service.client.post("/v1/completions", json=body)).json()
    second = (await service.client.post("/v1/completions", json=body)).json()
    assert first["choices"] == second["choices"]
    chosen = (await service.client.post("/v1/completions", json={**ASK, "temperature": 1})).json()
    again = (await service.client.post("/v1/completions", json={**body, "seed": chosen["sae"]["seed"]})).json()
    assert chosen["choices"] == again["choices"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"), ({"n": 0}, "n"), ({"n": 2, "best_of": 3}, "best_of"), ({"n": 2, "best_of": 1}, "best_of"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"), ({"presence_penalty": -3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"), ({"top_k": -2}, "top_k"), ({"min_p": 1.5}, "min_p"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"), ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"), ({"logit_bias": {"257": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema"),
        ({"logprobs": 6}, "logprobs"), ({"logprobs": True}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"), ({"nonsense": 1}, "nonsense"), ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"), ({"max_tokens": 0}, "max_tokens"), ({"stop": [""]}, "stop[0]"),
        ({"max_tokens": 10_000}, "max_tokens"), ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"sae": {"top_k_features": -1}}, "sae.top_k_features"),
        ({"sae": {"stop_when": {"feature": 1}}}, "sae.stop_when"), ({"sae": {"other": 1}}, "other"),
        ({"sae": {"baseline": True, "steering": []}}, "sae"), ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"), ({"prompt": ["a", ""]}, "prompt"),
        ({"sae": {"steering": [{"feature": 1, "strength": 1, "unit": "norm", "method": "scale"}]}}, "unit"),
        ({"sae": {"steering": [{"feature": 1, "strength": 1, "unit": "metres"}]}}, "sae.steering[0].unit"),
    ],
)  # fmt: skip
async def test_what_is_not_honoured_is_refused_by_name(service: Running, fields: dict[str, Any], param: str) -> None:
    await service.ready()
    before = len(await service.events())
    answer = await service.client.post("/v1/completions", json={**ASK, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(await service.events()) == before


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: without echo, this value is not supported"),
        (
            {"prompt": "a", "stream_options": {"include_usage": True}},
            "stream_options: without stream, this value is not",
        ),
        ({"prompt": "a", "n": 2, "best_of": 3}, "best_of: with another n, this value is not supported"),
        ({"messages": [], "top_logprobs": 2}, "top_logprobs: without logprobs, this value is not supported"),
        (
            {"messages": [], "max_tokens": 4, "max_completion_tokens": 5},
            "max_completion_tokens: with another max_tokens, this value is not supported",
        ),
    ],
)
async def test_what_is_refused_for_what_stands_beside_it_says_so(
    service: Running, fields: dict[str, Any], told: str
) -> None:
    await service.ready()
    if "messages" in fields:
        fields = {**fields, "messages": [{"role": "user", "content": "a"}]}
    path = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
    answer = await service.client.post(path, json={"model": "default", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(told)


async def test_neutral_values_are_accepted(service: Running) -> None:
    await service.ready()
    neutral = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "user": "me", "metadata": {"a": "b"},
        "store": False, "stop": None, "model": "default", "repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0,
        "response_format": {"type": "text"},
    }  # fmt: skip
    completion = {**ASK, **neutral, "best_of": 1, "logprobs": None, "suffix": None, "echo": True}
    answer = await service.client.post("/v1/completions", json=completion)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"].startswith(str(ASK["prompt"]))
    chat = {**CHAT, **neutral, "tools": [], "response_format": {"type": "text"}, "logprobs": False}
    assert (await service.client.post("/v1/chat/completions", json=chat)).status_code == 200


async def test_prompts_as_token_ids(service: Running) -> None:
    await service.ready()
    text = (await service.client.post("/v1/completions", json=ASK)).json()["choices"][0]["text"]
    ids = list(str(ASK["prompt"]).encode())
    for prompt in (ids, [ids], [ASK["prompt"]]):
        answer = await service.client.post("/v1/completions", json={**ASK, "prompt": prompt})
        assert answer.json()["choices"][0]["text"] == text


async def test_models_and_other_models(service: Running) -> None:
    none = await service.client.post("/v1/completions", json=ASK)
    assert (none.status_code, none.json()["error"]["code"]) == (409, "model_not_loaded")
    assert (await service.client.get("/v1/models")).json()["data"] == []
    await service.ready()
    listed = (await service.client.get("/v1/models")).json()["data"]
    assert [(m["id"], m["root"], m["max_model_len"]) for m in listed] == [(MODEL, MODEL, 256)]
    other = await service.client.post("/v1/completions", json={**ASK, "model": "gpt-5"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


async def test_expect_position(service: Running) -> None:
    sae_id = await service.ready()
    first = (await service.client.post("/v1/completions", json=ASK)).json()["sae"]["position"]
    body = {**ASK, "sae": {"expect_position": first}}
    assert (await service.client.post("/v1/completions", json=body)).status_code == 200
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": []})
    answer = await service.client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "precondition_failed")


async def test_a_client_that_hangs_up_frees_its_place(service: Running) -> None:
    await service.ready()
    service.engine.text_gate = asyncio.Event()
    for stream in (False, True):
        sent = asyncio.create_task(service.client.post("/v1/completions", json={**ASK, "stream": stream}))
        while not service.actor.state.generations:
            await asyncio.sleep(0.01)
        sent.cancel()
        while service.actor.state.generations:
            await asyncio.sleep(0.01)
        last = (await service.events())[-1]
        assert (last["type"], last["data"]["finish_reason"]) == ("GenerationFinished", "cancelled")
    service.engine.text_gate = None
    assert (await service.client.post("/v1/completions", json=ASK)).status_code == 200


async def test_detach_ends_the_text_that_uses_it(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 3}]})
    service.engine.step_seconds = 0.05
    running = asyncio.create_task(service.client.post("/v1/completions", json={**ASK, "max_tokens": 200}))
    while not service.actor.state.generations:
        await asyncio.sleep(0.01)
    detached = await asyncio.wait_for(service.client.post(f"/api/saes/{sae_id}/detach"), 2)
    assert detached.status_code == 200
    answer = (await running).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["sae"]["finish_reason"] == "intervention_removed"
    assert (await service.events())[-1]["data"]["finish_reason"] == "intervention_removed"


async def test_a_hook_that_fails_ends_its_request_and_takes_the_sae_out(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 3}]})
    attached = service.actor.state.attached[0].request_position
    service.engine.faults = {attached: 2}
    answer = await service.client.post("/v1/completions", json=ASK)
    assert answer.status_code == 500
    while service.actor.state.attachments:
        await asyncio.sleep(0.01)
    types = [event["type"] for event in await service.events()]
    assert types[-3:] == ["GenerationFinished", "HookFaulted", "SaeDetached"] or {"HookFaulted", "SaeDetached"} < set(
        types
    )
    assert (await service.client.post("/v1/completions", json=ASK)).status_code == 200
