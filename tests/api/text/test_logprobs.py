"""Log probabilities over `/v1`, in OpenAI's two shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ..conftest import Running
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
