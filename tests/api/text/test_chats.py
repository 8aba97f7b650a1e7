"""Chats over `/v1`: how the prompt is made of the messages, and what of that is on record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sae_actor.cli.render.explanation import explanation

from ..conftest import Running, serving

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "Hi"}
HALF = {"role": "assistant", "content": "Sure, I"}


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with serving(record_text=True) as running:
        await running.ready()
        yield running


async def prompt_of(service: Running, *messages: dict[str, str], **fields: Any) -> str:
    """What the model was given."""
    body = {"messages": messages, "max_tokens": 2, **fields}
    answer = await service.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    finished: bytes = bytes((await service.events())[-1]["data"]["prompt_token_ids"])
    return finished.decode()


async def recorded(service: Running) -> Any:
    started = [each for each in await service.events() if each["type"] == "GenerationStarted"]
    return started[-1]["data"]["tokenization"]


async def test_an_answer_is_begun_or_continued(service: Running) -> None:
    assert await prompt_of(service, USER, HALF) == "<user>Hi\n<assistant>Sure, I\n<assistant>"
    assert await recorded(service) is None
    assert await prompt_of(service, USER, HALF, continue_final_message=True) == "<user>Hi\n<assistant>Sure, I"
    assert await recorded(service) == {"add_generation_prompt": False, "continue_final_message": True}
    both = {"continue_final_message": True, "add_generation_prompt": False}
    assert await prompt_of(service, USER, HALF, **both) == "<user>Hi\n<assistant>Sure, I"
    assert await prompt_of(service, USER, HALF, add_generation_prompt=False) == "<user>Hi\n<assistant>Sure, I\n"
    for neutral in (None, True):
        assert (await prompt_of(service, USER, add_generation_prompt=neutral)).endswith("\n<assistant>")
    assert (await prompt_of(service, USER, continue_final_message=None)).endswith("\n<assistant>")
    contradiction = {"messages": [USER, HALF], "continue_final_message": True, "add_generation_prompt": True}
    refused = await service.client.post("/v1/chat/completions", json=contradiction)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "add_generation_prompt")


async def test_the_continued_message_is_the_assistants(service: Running) -> None:
    edit = {"feature": 1, "strength": 3, "positions": {"role": "assistant"}, "exclude": []}
    body = {"messages": [USER, HALF], "max_tokens": 3, "continue_final_message": True, "sae": {"steering": [edit]}}
    answer = (await service.client.post("/v1/chat/completions", json=body)).json()
    assert answer["sae"]["receipt"]["tokens_edited"] == len("<assistant>Sure, I")
    finished = (await service.events())[-1]["data"]
    assert finished["edited"] == [[len("<user>Hi\n"), len("<user>Hi\n<assistant>Sure, I")]]


async def test_variables_of_the_template(service: Running) -> None:
    plain = await prompt_of(service, USER)
    given = {"mood": "kind", "enable_thinking": False, "story": "Once upon a time, in private"}
    assert await prompt_of(service, USER, chat_template_kwargs=given) == f"{plain}(kind)"
    wanted = {"chat_template_kwargs": {"mood": "kind", "enable_thinking": False}, "left_out": ["story"]}
    assert await recorded(service) == wanted
    id_ = (await service.events())[-1]["data"]["generation_id"]
    view = (await service.client.get(f"/api/generations/{id_}")).json()
    assert view["tokenization"] == wanted
    words = explanation({**view, "log": {"ok": True, "events": 1, "head": {"position": 1, "hash": ""}}})
    assert "template variables mood kind, enable_thinking false; not on record: story" in words
    nothing: Any
    for nothing in (None, {}):
        assert await prompt_of(service, USER, chat_template_kwargs=nothing) == plain
        assert await recorded(service) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs.a b"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
    ],
)
async def test_refused_by_name(service: Running, fields: dict[str, Any], param: str) -> None:
    answer = await service.client.post("/v1/chat/completions", json={"messages": [USER], **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
