"""How prompts become tokens, and what is refused of chats whose messages cannot be told apart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.engine import FakeEngine

from .conftest import Running, serving
from .text.test_routes import ASK, CHAT

pytestmark = pytest.mark.anyio

END = 256


async def ids_of(service: Running, path: str, body: dict[str, Any]) -> list[list[int]]:
    """The prompts' token ids, as they are on record."""
    before = len(await service.events())
    answer = await service.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    ended = [each["data"] for each in (await service.events())[before:] if each["type"] == "GenerationFinished"]
    return [each["prompt_token_ids"] for each in ended]


async def activations(service: Running, **body: Any) -> list[int]:
    answer = await service.client.post("/api/activations", json=body)
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["token_ids"]
    return found


async def test_a_prompt_is_begun_as_it_is_asked_for() -> None:
    hi = list(b"hi")
    async with serving(record_text=True, engine=FakeEngine(adds_bos=True)) as service:
        await service.ready()
        for asked, ids in (
            ({}, [END, *hi]),
            ({"add_special_tokens": True}, [END, *hi]),
            ({"add_special_tokens": False}, hi),
            ({"prepend_bos": False}, hi),
            ({"add_special_tokens": False, "prepend_bos": True}, [END, *hi]),
            ({"add_special_tokens": None, "prepend_bos": None}, [END, *hi]),
        ):
            body = {**ASK, "prompt": "hi", **asked}
            assert await ids_of(service, "/v1/completions", body) == [ids], asked
            assert await ids_of(service, "/api/compare", body) == [ids, ids], asked
            assert await activations(service, prompt="hi", **asked) == ids, asked
        assert await ids_of(service, "/v1/completions", {**ASK, "prompt": "<end>hi"}) == [[END, *hi]]
        assert await ids_of(service, "/v1/completions", {**ASK, "prompt": ["", "hi"]}) == [[END], [END, *hi]]
        assert await ids_of(service, "/v1/completions", {**ASK, "prompt": hi}) == [hi], "ids are used as given"


async def test_a_chat_is_begun_by_its_template_alone_unless_asked() -> None:
    async with serving(record_text=True, engine=FakeEngine(adds_bos=True)) as service:
        await service.ready()
        plain = list(b"<user>Hello\n<assistant>")
        for asked, ids in (
            ({}, plain),
            ({"add_special_tokens": False}, plain),
            ({"add_special_tokens": True}, [END, *plain]),
            ({"prepend_bos": True}, [END, *plain]),
        ):
            assert await ids_of(service, "/v1/chat/completions", {**CHAT, **asked}) == [ids], asked
            assert await activations(service, messages=CHAT["messages"], **asked) == ids, asked


@pytest.mark.parametrize("prompt", ["", [""], []])
async def test_an_empty_prompt_that_nothing_begins(service: Running, prompt: Any) -> None:
    await service.ready()
    answer = await service.client.post("/v1/completions", json={**ASK, "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    if prompt != []:
        begun = await service.client.post("/v1/completions", json={**ASK, "prompt": prompt, "prepend_bos": True})
        assert begun.json()["usage"]["prompt_tokens"] == 1


async def test_what_spells_a_control_token() -> None:
    async with serving(record_text=True) as service:
        await service.ready()
        spelled = {**ASK, "prompt": "a<end>b"}
        assert await ids_of(service, "/v1/completions", spelled) == [[97, END, 98]]
        assert await ids_of(service, "/v1/completions", {**spelled, "parse_special": False}) == [list(b"a<end>b")]
        assert await ids_of(service, "/api/compare", {**spelled, "parse_special": False}) == [list(b"a<end>b")] * 2
        assert await activations(service, prompt="a<end>b") == [97, END, 98]
        assert await activations(service, prompt="a<end>b", parse_special=False) == list(b"a<end>b")
        said = {**CHAT, "messages": [{"role": "user", "content": "a<end>b"}]}
        assert await ids_of(service, "/v1/chat/completions", said) == [list(b"<user>a<end>b\n<assistant>")]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {**ASK, "prompt": [5], "prepend_bos": True}, "prepend_bos"),
        ("/v1/completions", {**ASK, "prompt": [[5]], "prepend_bos": False}, "prepend_bos"),
        ("/v1/completions", {**ASK, "add_special_tokens": 1}, "add_special_tokens"),
        ("/v1/chat/completions", {**CHAT, "parse_special": False}, "parse_special"),
        ("/v1/chat/completions", {**CHAT, "prepend_bos": "yes"}, "prepend_bos"),
    ],
)
async def test_refusals(service: Running, path: str, body: dict[str, Any], param: str) -> None:
    await service.ready()
    answer = await service.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_what_was_asked_is_on_record(service: Running) -> None:
    await service.ready()
    for asked in (
        {},
        {"prepend_bos": False},
        {"add_special_tokens": False, "prepend_bos": True, "parse_special": False},
    ):
        answer = (await service.client.post("/v1/completions", json={**ASK, **asked})).json()
        started = (await service.events())[-2]["data"]
        assert started.get("tokenization") == (asked or None)
        view = (await service.client.get(f"/api/generations/{answer['id']}")).json()
        assert view["tokenization"] == (asked or None)


# — chats whose messages cannot be told apart —

BY_ROLE = {"feature": 1, "strength": 3, "positions": {"role": "user"}}
BARE = {"feature": 1, "strength": 3, "exclude": ["template"]}


@pytest.mark.parametrize("edit", [BY_ROLE, BARE])
async def test_what_would_turn_away_every_chat_is_not_accepted(edit: dict[str, Any]) -> None:
    async with serving(engine=FakeEngine(tells_messages=False)) as service:
        sae_id = await service.ready()
        refused = await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
        assert (refused.status_code, refused.json()["code"]) == (422, "positions_unknown")
        command = {"type": "Steer", "sae_id": sae_id, "features": [edit]}
        refused = await service.client.post("/api/commands", json=command)
        assert (refused.status_code, refused.json()["code"]) == (422, "positions_unknown")
        assert (await service.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        own = await service.client.post("/v1/chat/completions", json={**CHAT, "sae": {"steering": [edit]}})
        assert (own.status_code, own.json()["error"]["code"]) == (422, "positions_unknown")
        read = {"messages": CHAT["messages"], "sae": {"steering": [edit]}}
        refused = await service.client.post("/api/activations", json=read)
        assert (refused.status_code, refused.json()["code"]) == (422, "positions_unknown")


async def test_a_chat_that_is_not_told_under_steering_that_was_accepted(service: Running) -> None:
    """What no chat before it had shown."""
    sae_id = await service.ready()
    set_ = await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [BY_ROLE]})
    assert set_.status_code == 200
    service.engine.tells_messages = False
    refused = await service.client.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "positions_unknown")
    assert (
        await service.client.post("/v1/chat/completions", json={**CHAT, "sae": {"baseline": True}})
    ).status_code == 200
