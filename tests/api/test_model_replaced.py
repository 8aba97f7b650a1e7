"""A model that is replaced while a prompt is read: the token ids of one are never run by another."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Running
from .text.test_routes import ASK, CHAT

pytestmark = pytest.mark.anyio


def replaced_while_read(service: Running, *commands: dict[str, Any]) -> None:
    """The next prompt is read by the model of now, and these commands are done before it is answered."""
    tokenize = service.engine.tokenize

    async def slow(prompt: Any, how: Any = None, **more: Any) -> Any:
        service.engine.tokenize = tokenize  # type: ignore[method-assign]
        read = await tokenize(prompt, how, **more)
        for command in commands:
            await service.command(**command)
        return read

    service.engine.tokenize = slow  # type: ignore[method-assign]


def loading(model: str) -> dict[str, Any]:
    return {"type_": "LoadModel", "model": model}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**ASK, "prompt": ["hello", "b"]}),
        ("/v1/completions", {**ASK, "stream": True}),
        ("/v1/chat/completions", CHAT),
    ],
)
async def test_a_text_is_not_made_by_another_model(service: Running, path: str, body: dict[str, Any]) -> None:
    await service.command("LoadModel", model="old")
    replaced_while_read(service, loading("new"))
    answer = await service.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_not_loaded"), answer.text
    assert "GenerationStarted" not in [event["type"] for event in await service.events()]
    again = await service.client.post("/v1/completions", json=ASK)
    assert (again.status_code, again.json()["model"]) == (200, "new")


async def test_nor_by_the_same_one_loaded_anew(service: Running) -> None:
    """Its folder may hold another tokenizer by then."""
    await service.command("LoadModel", model="old")
    replaced_while_read(service, {"type_": "UnloadModel"}, loading("old"))
    answer = await service.client.post("/v1/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_not_loaded"), answer.text


async def test_a_load_that_changes_nothing_is_none(service: Running) -> None:
    await service.command("LoadModel", model="old")
    replaced_while_read(service, loading("old"))
    assert (await service.client.post("/v1/completions", json=ASK)).status_code == 200


async def test_activations_are_not_those_of_another_model(service: Running) -> None:
    sae_id = await service.ready()
    replaced_while_read(
        service, {"type_": "Detach", "sae_id": sae_id}, loading("new"), {"type_": "Attach", "sae_id": sae_id}
    )
    answer = await service.client.post("/api/activations", json={"prompt": "hello"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded"), answer.text
    assert (await service.client.post("/api/activations", json={"prompt": "hello"})).status_code == 200
