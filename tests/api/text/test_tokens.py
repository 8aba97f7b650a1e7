"""The tokenizer over HTTP, as clients of vLLM ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.api.operations import OPERATIONS
from sae_actor.api.problems import OPENAI
from sae_actor.config.access import Grant, digest_of

from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio


async def read(service: Running, path: str, **body: Any) -> dict[str, Any]:
    answer = await service.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_text_and_back(service: Running) -> None:
    await service.ready(attach=False)
    found = await read(service, "/tokenize", prompt="Hé")
    assert found == {"tokens": [72, 195, 169], "count": 3, "max_model_len": 256, "token_strs": None}
    strings = await read(service, "/tokenize", prompt="Hé<end>", model=MODEL, return_token_strs=True)
    assert (strings["tokens"], "".join(strings["token_strs"])) == ([72, 195, 169, 256], "Hé<end>")
    assert await read(service, "/detokenize", tokens=strings["tokens"], model="default") == {"prompt": "Hé<end>"}
    assert await read(service, "/detokenize", tokens=[]) == {"prompt": ""}
    assert (await read(service, "/tokenize", prompt=""))["tokens"] == []
    assert not [each for each in await service.events() if each["type"].startswith("Generation")]


async def test_special_tokens(service: Running) -> None:
    service.engine.adds_bos = True
    await service.ready(attach=False)
    assert (await read(service, "/tokenize", prompt="H"))["tokens"] == [256, 72]
    assert (await read(service, "/tokenize", prompt="H", add_special_tokens=True))["tokens"] == [256, 72]
    assert (await read(service, "/tokenize", prompt="H", add_special_tokens=False))["tokens"] == [72]
    assert (await read(service, "/tokenize", prompt=""))["tokens"] == [256]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "<user>Hi\n<assistant>So\n<assistant>"),
        ({"add_generation_prompt": False}, "<user>Hi\n<assistant>So\n"),
        ({"continue_final_message": True}, "<user>Hi\n<assistant>So"),
        ({"chat_template_kwargs": {"mood": "kind"}}, "<user>Hi\n<assistant>So\n<assistant>(kind)"),
    ],
)
async def test_a_chat(service: Running, fields: dict[str, Any], text: str) -> None:
    await service.ready(attach=False)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So", "tool_calls": None}]
    found = await read(service, "/tokenize", messages=messages, **fields)
    assert bytes(found["tokens"]).decode() == text
    read_ = await service.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1, **fields})
    assert read_.json()["usage"]["prompt_tokens"] == found["count"]


async def test_a_text_that_is_too_long_to_be_run_is_counted(service: Running) -> None:
    await service.ready(attach=False)
    found = await read(service, "/tokenize", prompt="x" * 1000, return_token_strs=True)
    assert (found["count"], found["max_model_len"], found["token_strs"]) == (1000, 256, None)
    assert await read(service, "/detokenize", tokens=found["tokens"]) == {"prompt": "x" * 1000}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "nonsense": 1}, 400, "nonsense"),
        ("/tokenize", {"prompt": "a", "model": "gpt-5"}, 404, "model"),
        ("/tokenize", {"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role"),
        ("/detokenize", {"tokens": [257]}, 400, "prompt"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
    ],
)
async def test_refused_by_name(service: Running, path: str, body: dict[str, Any], status: int, param: str) -> None:
    await service.ready(attach=False)
    answer = await service.client.post(path, json=body)
    assert (answer.status_code, answer.json()["param"]) == (status, param)


async def test_what_is_known_of_the_tokenizer(service: Running) -> None:
    none = await service.client.get("/tokenizer_info")
    assert (none.status_code, none.json()["code"]) == (409, "model_not_loaded")
    await service.ready(attach=False)
    found = (await service.client.get("/tokenizer_info")).json()
    assert (found["bos_token"], found["eos_token"], found["pad_token"]) == ("<end>", "<end>", None)
    assert (found["chat_template"], found["model_max_length"]) == ("{{ messages }}", 256)


async def test_a_viewer_may_ask(service: Running) -> None:
    await service.ready(attach=False)
    grants = (Grant("olga", "operator", digest_of(b"o" * 20)), Grant("vera", "viewer", digest_of(b"v" * 20)))
    async with serving(grants=grants, bearer="o" * 20) as secured:
        await secured.ready(attach=False)
        viewer = {"authorization": f"Bearer {'v' * 20}"}
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert (await secured.client.post(path, json=body, headers=viewer)).status_code == 200
            nobody = await secured.client.post(path, json=body, headers={"authorization": "Bearer none"})
            assert nobody.status_code == 401
        made = await secured.client.post("/v1/completions", json={"prompt": "a"}, headers=viewer)
        assert made.status_code == 403


@pytest.mark.parametrize("prefix", ["", "/v1/v1"])
async def test_a_base_url_that_is_not_quite_it(service: Running, prefix: str) -> None:
    for path in OPENAI:
        answer = await service.client.post(f"{prefix}{path}", json={"prompt": "a"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (404, "not_found", "not_found_error")
        assert f"did you mean {service.url}/v1{path}? The base URL is {service.url}/v1" in error["message"]
    assert (await service.client.get(f"{prefix}/models/default")).status_code == 404
    for path in ("/v1/nothing", "/v1/chat/completions/nothing", "/nothing"):
        assert "did you mean" not in (await service.client.get(path)).text


def test_every_route_of_openai_is_found() -> None:
    routes = {each.path.removeprefix("/v1") for each in OPERATIONS if each.path.startswith("/v1/")}
    assert {path for path in routes if "{" not in path} == set(OPENAI)
