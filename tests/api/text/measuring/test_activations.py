"""Activations of several prompts, and of what arrives itself; how much of it there may be."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch

from sae_actor.api.answers.lists import AT_A_TIME, LongLists
from sae_actor.ports import FeatureActivation

from ...conftest import Running
from ..test_activations import D_SAE, ask, on

pytestmark = pytest.mark.anyio


async def test_of_several_prompts(service: Running) -> None:
    sae_id = await service.ready()
    inputs: list[dict[str, Any]] = [
        {"prompt": "h\u00e9", "id": "first"},
        {"token_ids": [97, 256]},
        {"messages": [{"role": "user", "content": "hi", "name": "Ann"}]},
        {"prompt": "ab", "continuation": "cd"},
    ]
    told = await ask(service, inputs=inputs, top_k=2)
    assert (told["sae_id"], [each["input"] for each in told["results"]]) == (sae_id, [0, 1, 2, 3])
    assert [each.get("id") for each in told["results"]] == ["first", None, None, None]
    for given, found in zip(inputs, told["results"], strict=True):
        one = {name: each for name, each in given.items() if name not in ("id", "continuation")}
        if "continuation" in given:
            one = {"prompt": "abcd"}
        alone = await ask(service, **one, top_k=2)
        assert {name: found[name] for name in found if name not in ("input", "id")} == {
            name: alone[name] for name in alone if name not in ("sae_id", "intervention_sha256")
        }
        assert alone["intervention_sha256"] == told["intervention_sha256"]
    wrong = await service.client.post("/api/activations", json={"inputs": [{"prompt": "a"}, {"token_ids": [999]}]})
    assert (wrong.status_code, wrong.json()["param"]) == (400, "inputs[1]")


async def test_activations_themselves(service: Running) -> None:
    """The fake model's: the layer everywhere, and the token's number at the place of its number."""
    await service.ready()

    def row(token: int, layer: int) -> list[float]:
        return [layer + (token if token % 16 == n else 0.0) for n in range(16)]

    told = await ask(service, prompt="ab", raw=True, top_k=1)
    assert told["raw"] == [row(97, 1), row(98, 1)]
    assert told["features"] == [[], on(98, 1)]
    assert "raw" not in await ask(service, prompt="ab")
    elsewhere = await ask(service, prompt="ab", raw=True, hook_point={"kind": "mlp_out", "layer": 3})
    assert (elsewhere["raw"], elsewhere["sae_id"], elsewhere["features"]) == ([row(97, 3), row(98, 3)], None, [[], []])
    assert elsewhere["is_sink"] == [True, False]
    several = await ask(service, inputs=[{"prompt": "ab"}, {"prompt": "c"}], raw=True)
    assert [each["raw"] for each in several["results"]] == [[row(97, 1), row(98, 1)], [row(99, 1)]]


async def tensors(service: Running, **body: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    headers = {"Accept": "application/vnd.safetensors"}
    answer = await service.client.post("/api/activations", json=body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.safetensors")
    length = int.from_bytes(answer.content[:8], "little")
    assert length % 8 == 0
    said: dict[str, str] = json.loads(answer.content[8 : 8 + length])["__metadata__"]
    return safetensors.torch.load(answer.content), said


async def test_activations_as_a_file_of_tensors(service: Running) -> None:
    await service.ready()
    plain = await ask(service, prompt="ab", raw=True)
    found, said = await tensors(service, prompt="ab", raw=True)
    assert said == {"hook_point": "resid_post.1", "intervention_sha256": plain["intervention_sha256"]}
    assert {name: each.dtype for name, each in found.items()} == {
        "raw": torch.float32, "token_ids": torch.int64, "is_sink": torch.bool,
    }  # fmt: skip
    assert found["raw"].tolist() == plain["raw"]
    assert (found["token_ids"].tolist(), found["is_sink"].tolist()) == ([97, 98], [True, False])
    several, _ = await tensors(service, inputs=[{"prompt": "abc"}, {"prompt": "d"}], raw=True)
    assert {name: list(each.shape) for name, each in several.items() if name.startswith("raw")} == {
        "raw.0": [3, 16], "raw.1": [1, 16],
    }  # fmt: skip
    bare = await service.client.post(
        "/api/activations", json={"prompt": "a"}, headers={"Accept": "application/vnd.safetensors"}
    )
    assert (bare.status_code, bare.json()["param"]) == (400, "raw")


@pytest.mark.parametrize(
    ("most", "body", "why"),
    [
        ("MOST_NUMBERS", {"features": [0, 1, 2, 3]}, ("3 tokens × 4 features are 12 numbers; at most 10", "features")),
        ("MOST_NUMBERS", {"top_k": 4}, ("3 tokens × 4 features are 12 numbers; at most 10", "top_k")),
        ("MOST_NUMBERS", {"raw": True, "top_k": 1}, ("3 tokens × 16 numbers of a raw activation are 48", "raw")),
        ("MOST_TOKENS", {"inputs": [{"prompt": "abcdef"}, {"prompt": "abcde"}]}, ("11 tokens; at most 10", "inputs")),
    ],
)  # fmt: skip
async def test_an_answer_has_a_largest_size(
    service: Running, monkeypatch: pytest.MonkeyPatch, most: str, body: dict[str, Any], why: tuple[str, str]
) -> None:
    monkeypatch.setattr(f"sae_actor.api.text.activations.{most}", 10)
    await service.ready()
    asked = body if "inputs" in body else {**body, "prompt": "abc"}
    answer = await service.client.post("/api/activations", json=asked)
    assert (answer.status_code, answer.json()["param"]) == (400, why[1])
    assert why[0] in answer.json()["detail"]


async def test_the_service_answers_others_while_a_long_answer_is_written(service: Running) -> None:
    """Rows are encoded some at a time: between them the loop turns, and a client that leaves ends the rest."""
    items = [[FeatureActivation(n, 1.5) for n in range(100)] for _ in range(1000)]
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.create_task(turning())
    lists = LongLists()
    view = {"rows": await lists.add(list(items)), "none": await lists.add([]), "text": "\x01 1 \x01"}
    others.cancel()
    assert turns >= 1000 // AT_A_TIME
    parts = lists.parts(view)
    assert b"".join(parts) == msgspec.json.encode({**view, "rows": items, "none": []})
    assert max(map(len, parts)) < 100 * AT_A_TIME * 50
    encoding = asyncio.create_task(lists.add(rest := list(items)))
    await asyncio.sleep(0)
    encoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await encoding
    assert len(rest) > 800, "what nobody waits for is not encoded"


async def test_a_long_answer_comes_in_parts(service: Running) -> None:
    await service.ready()
    token_ids = [n % 250 for n in range(250)]
    told = await ask(service, token_ids=token_ids, features=[n % D_SAE for n in range(1000)])
    assert [len(row) for row in told["features"]] == [1000] * 250
    assert told["features"][7][9] == {"feature": 9, "activation": 1.0}
    assert (told["token_ids"], told["is_sink"][:2]) == (token_ids, [True, False])


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "inputs": [{"prompt": "a"}]},
        {"inputs": []},
        {"inputs": [{}]},
        {"inputs": [{"prompt": "a", "token_ids": [1]}]},
        {"prompt": "a", "hook_point": {"kind": "resid_post", "layer": 1}},
        {"prompt": "a", "raw": True, "features": [1], "hook_point": {"kind": "resid_post", "layer": 1}},
    ],
    ids=str,
)
async def test_what_does_not_go_together(service: Running, body: dict[str, Any]) -> None:
    await service.ready()
    answer = await service.client.post("/api/activations", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_a_place_that_the_model_lacks(service: Running) -> None:
    await service.ready()
    body = {"prompt": "a", "raw": True, "hook_point": {"kind": "resid_post", "layer": 99}}
    answer = await service.client.post("/api/activations", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "layer_out_of_range")
