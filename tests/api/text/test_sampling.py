"""Over `/v1`: `n` choices, penalties, bias, texts of a given form; streamed and not, and what of them is on record."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import jsonschema
import msgspec
import pytest

import sae_actor.engine.decoding.grammars  # noqa: F401 - the fake engine imports it, and torch, where a client would wait
from sae_actor.cli.render.explanation import explanation
from sae_actor.domain.chats import Reasoning
from sae_actor.errors import MailboxFullError
from tests.fakes.engine import FakeEngine

from ..conftest import Running, serving
from .test_routes import ASK, CHAT, chunks

pytestmark = pytest.mark.anyio

PATHS = ("/v1/completions", "/v1/chat/completions")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"b": {"type": "string", "maxLength": 8}, "a": {"type": "array", "items": {"enum": [1, 22]}}},
    "required": ["b", "a"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}


def asked(path: str, **fields: Any) -> dict[str, Any]:
    return {**(ASK if path == PATHS[0] else CHAT), **fields}


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


async def streamed(service: Running, path: str, body: dict[str, Any]) -> dict[int, str]:
    """The text of each choice."""
    found: dict[int, str] = {}
    for chunk in await chunks(service, path, body):
        for part in chunk["choices"]:
            said = part["text"] if "text" in part else part["delta"].get("content", "")
            found[part["index"]] = found.get(part["index"], "") + said
    return found


async def started(service: Running) -> list[dict[str, Any]]:
    return [event["data"] for event in await service.events() if event["type"] == "GenerationStarted"]


@pytest.mark.parametrize("path", PATHS)
async def test_each_choice_is_a_generation_of_its_own(service: Running, path: str) -> None:
    await service.ready()
    body = asked(path, temperature=1, seed=2**63 - 1, n=3)
    answer = (await service.client.post(path, json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    receipts = [choice["sae"] for choice in answer["choices"]]
    assert [each["seed"] for each in receipts] == [2**63 - 1, 2**63, 2**63 + 1]
    assert len({each["generation_id"] for each in receipts}) == 3
    assert answer["id"] == receipts[0]["generation_id"] == answer["sae"]["generation_id"]
    begun = await started(service)
    assert [each["generation_id"] for each in begun] == [each["generation_id"] for each in receipts]
    assert [each["sampling"]["seed"] for each in begun] == [each["seed"] for each in receipts]
    alone = (await service.client.post(path, json=asked(path, temperature=1, seed=2**63 - 1))).json()
    assert text_of(answer["choices"][0]) == text_of(alone["choices"][0])
    assert len({text_of(choice) for choice in answer["choices"]}) == 3
    assert answer["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"], "the prompt counts once"
    assert answer["usage"]["completion_tokens"] == 3 * alone["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", PATHS)
async def test_choices_interleave_in_a_stream(service: Running, path: str) -> None:
    await service.ready()
    body = asked(path, temperature=1, seed=7, n=4)
    whole = (await service.client.post(path, json=body)).json()
    found = await chunks(service, path, {**body, "stream_options": {"include_usage": True}})
    order = [part["index"] for chunk in found for part in chunk["choices"]]
    assert order != sorted(order), "they come as they are made"
    assert await streamed(service, path, body) == {each["index"]: text_of(each) for each in whole["choices"]}
    last = {part["index"]: part for chunk in found for part in chunk["choices"] if part.get("finish_reason")}
    assert {index: part["sae"]["seed"] for index, part in last.items()} == {0: 7, 1: 8, 2: 9, 3: 10}
    assert found[-1]["usage"] == whole["usage"]


async def test_choices_of_several_prompts_follow_one_another(service: Running) -> None:
    await service.ready()
    body = {**ASK, "prompt": ["one", "another"], "temperature": 1, "seed": 5, "n": 2, "echo": True, "best_of": 2}
    answer = (await service.client.post(PATHS[0], json=body)).json()
    assert [choice["text"][:3] for choice in answer["choices"]] == ["one", "one", "ano", "ano"]
    assert [choice["sae"]["seed"] for choice in answer["choices"]] == [5, 6, 5, 6]
    assert answer["usage"]["prompt_tokens"] == len("one") + len("another")
    both = (await service.client.post("/api/compare", json=body)).json()
    assert [choice["index"] for choice in both["baseline"]["choices"]] == [0, 1, 2, 3]


async def test_all_choices_are_admitted_or_none(service: Running) -> None:
    await service.ready()
    service.context.generations.places = 3
    before = len(await service.events())
    too_many = await service.client.post(PATHS[0], json={**ASK, "n": 4})
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")
    service.engine.text_gate = asyncio.Event()
    waiting = asyncio.create_task(service.client.post(PATHS[0], json={**ASK, "n": 3}))
    while service.context.generations.waiting < 3:
        await asyncio.sleep(0.005)
    refused = await service.client.post(PATHS[0], json={**ASK, "n": 2})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == MailboxFullError.code
    service.engine.text_gate.set()
    assert (await waiting).status_code == 200
    assert len(await started(service)) == 3
    assert len(await service.events()) == before + 6
    stale = {**ASK, "n": 3, "sae": {"expect_position": 1}}
    assert (await service.client.post(PATHS[0], json=stale)).status_code == 412
    assert len(await started(service)) == 3


async def test_choices_run_under_one_state(service: Running) -> None:
    sae_id = await service.ready()
    many = [service.client.post(PATHS[0], json={**ASK, "n": 16}) for _ in range(4)]
    steers = [
        service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": n, "strength": 9.0}]})
        for n in range(6)
    ]
    answers = await asyncio.gather(*many, *steers)
    for answer in answers[:4]:
        choices = answer.json()["choices"]
        assert len({choice["sae"]["intervention_sha256"] for choice in choices}) == 1
        positions = [choice["sae"]["position"] for choice in choices]
        assert positions == list(range(positions[0], positions[0] + 16)), "one transaction"


@pytest.mark.parametrize("path", PATHS)
async def test_settings_change_the_text_and_are_on_record(service: Running, path: str) -> None:
    await service.ready()
    plain = text_of((await service.client.post(path, json=asked(path))).json()["choices"][0])
    fields = {
        "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "logit_bias": {"90": 3, "65": 100, "70": 0},
    }  # fmt: skip
    body = asked(path, **fields)
    whole = (await service.client.post(path, json=body)).json()["choices"][0]
    assert text_of(whole) == "A" * 8 != plain
    assert await streamed(service, path, body) == {0: "A" * 8}
    recorded = (await started(service))[-1]["sampling"]
    view = (await service.client.get(f"/api/generations/{(await started(service))[-1]['generation_id']}")).json()
    told = explanation({**view, "log": {"ok": True, "events": 1, "head": {"position": 1, "hash": ""}}})
    for line in (
        "of the probable tokens alone: top_k 40, min_p 0.1",
        "repetition_penalty 1.5, frequency_penalty 0.5, presence_penalty -0.5",
        "logits of 2 tokens were raised or lowered",
    ):
        assert f"             {line}\n" in told
    wanted = {**fields, "logit_bias": [[65, 100.0], [90, 3.0]]}
    assert {name: recorded[name] for name in fields} == wanted
    neutral = (await started(service))[0]["sampling"]
    assert [neutral[name] for name in fields] == [0, 0.0, 1.0, 0.0, 0.0, []]
    assert neutral["response_format"] is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_text_follows_its_schema(service: Running, path: str, seed: int) -> None:
    await service.ready()
    body = asked(path, max_tokens=200, temperature=1, seed=seed, response_format=FORM, n=2)
    answer = (await service.client.post(path, json=body)).json()
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        value = json.loads(text_of(choice))
        jsonschema.validate(value, SCHEMA)
        assert list(value) == ["b", "a"], "in the order of the schema"
    assert await streamed(service, path, body) == {each["index"]: text_of(each) for each in answer["choices"]}
    cut = (await service.client.post(path, json={**body, "max_tokens": 3})).json()
    assert [each["finish_reason"] for each in cut["choices"]] == ["length", "length"]
    stopped = (await service.client.post(path, json={**body, "stop": '"a"', "n": 1})).json()["choices"][0]
    assert text_of(stopped) == text_of(answer["choices"][0]).partition('"a"')[0]


async def test_any_json_object(service: Running) -> None:
    await service.ready()
    body = {**CHAT, "max_tokens": 200, "response_format": {"type": "json_object"}}
    choice = (await service.client.post(PATHS[1], json=body)).json()["choices"][0]
    assert isinstance(json.loads(text_of(choice)), dict)
    assert (await started(service))[-1]["sampling"]["response_format"] == {
        "type": "json_object", "schema_sha256": None, "schema": None,
    }  # fmt: skip


@pytest.mark.parametrize("record_text", [False, True])
async def test_a_schema_is_on_record_by_its_digest(record_text: bool) -> None:
    async with serving(record_text=record_text) as service:
        await service.ready()
        await service.client.post(PATHS[0], json={**ASK, "response_format": FORM, "n": 2})
        written = msgspec.json.encode(SCHEMA)
        for begun in await started(service):
            form = begun["sampling"]["response_format"]
            assert form["type"] == "json_schema"
            assert form["schema_sha256"] == hashlib.sha256(written).hexdigest()
            assert form["schema"] == (written.decode() if record_text else None)
        if not record_text:
            assert b"maxLength" not in b"".join(bytes(event.data) for event in await service.log.read(0, 1000))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.com/s.json"}, "example.com"),
        ({"description": "x" * 70_000}, "at most 65536"),
        ({"type": "string", "pattern": "a" * 5_000 + "(?=b)"}, ""),
    ],
)
async def test_a_schema_without_a_grammar_is_refused_with_the_reason(
    service: Running, schema: dict[str, Any], reason: str
) -> None:
    await service.ready()
    before = len(await service.events())
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    answer = await service.client.post(PATHS[1], json={**CHAT, "response_format": form})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == ("response_format", "invalid_request_error")
    assert error["message"].startswith("response_format: ")
    assert reason in error["message"]
    assert len(await service.events()) == before


async def test_channels_have_no_form() -> None:
    async with serving(engine=FakeEngine(reasoning=Reasoning(format="channels"))) as service:
        await service.ready()
        answer = await service.client.post(PATHS[1], json={**CHAT, "response_format": FORM})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
        assert (await service.client.post(PATHS[1], json=CHAT)).status_code == 200
