"""The description is valid, says what the code does, and its examples are what it says they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from httpx_sse import aconnect_sse
from openapi_spec_validator import OpenAPIV31SpecValidator

from sae_actor.api.openapi.document import description
from sae_actor.api.operations import OPERATIONS, Operation
from sae_actor.api.requests import decoded
from sae_actor.domain.commands import AnyCommand
from sae_actor.domain.events import PAYLOADS
from sae_actor.errors import BY_CODE

from ..conforming import check, check_component, conforms, described, pointer
from ..conftest import Running, serving

GOLDEN = (Path(__file__).parents[2] / "domain" / "golden_events.ndjson").read_bytes().splitlines()
WITH_BODY = [pytest.param(each, id=each.handler.__name__) for each in OPERATIONS if each.body is not None]


def test_the_document_is_valid() -> None:
    document = json.loads(json.dumps(description(secured=True)))
    OpenAPIV31SpecValidator(document).validate()
    assert r"\\A" not in json.dumps(document)


def test_generators_of_clients_can_read_it() -> None:
    """What openapi-python-client and openapi-generator stumble over, or make a type without a name or sense of."""
    wrong: list[str] = []

    def look(schema: Any, where: str, *, negated: bool) -> None:
        if isinstance(schema, list):
            for at, each in enumerate(schema):
                look(each, f"{where}/{at}", negated=negated)
        if not isinstance(schema, dict):
            return
        of, words = schema.get("type"), schema.get("enum", [])
        reasons = {
            "items is false": schema.get("items") is False,
            "prefixItems": "prefixItems" in schema,
            "an array without items": of == "array" and "items" not in schema and not negated,
            "an enum of anything but words of a type": isinstance(words, list)
            and bool(words)
            and (of != "string" or not all(isinstance(each, str) for each in words)),
            "anyOf, though a tag tells which": "anyOf" in schema and "discriminator" in schema,
            "alternatives beside properties": "properties" in schema and not {"anyOf", "oneOf"}.isdisjoint(schema),
        }
        wrong.extend(f"{where}: {reason}" for reason, holds in reasons.items() if holds)
        for name, each in schema.get("properties", {}).items() if not negated else ():
            kinds = [each, *each.get("anyOf", ())] if isinstance(each, dict) else []
            if kinds and all(kind.get("type") == "null" for kind in kinds[1:] or kinds):
                wrong.append(f"{where}/{name}: only null")
        for name, each in schema.items():
            if name not in ("example", "examples", "default", "enum", "const"):
                look(each, f"{where}/{name}", negated=negated or name == "not")

    look(json.loads(json.dumps(description(secured=True))), "", negated=False)
    assert wrong == []


def test_no_two_operations_share_the_example_of_a_key() -> None:
    parameters = [
        parameter
        for operations in described()["paths"].values()
        for operation in operations.values()
        for parameter in operation["parameters"]
        if parameter["name"] == "Idempotency-Key"
    ]
    assert len(parameters) > 5
    keys = [parameter["example"] for parameter in parameters if "example" in parameter]
    assert len(keys) == len({*keys})


def test_every_answer_has_a_shape() -> None:
    plain = [each.path for each in OPERATIONS if each.returns is None and (200, "application/json") in each.answers]
    streams = [each.path for each in OPERATIONS if each.items is None and (200, "text/event-stream") in each.answers]
    assert plain == streams == []


def test_every_refusal_stands_under_its_status() -> None:
    for path, operations in described()["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                codes = [code for code in BY_CODE if f"`{code}`" in response["description"]]
                assert {BY_CODE[code].status for code in codes} <= {int(status)}, (method, path)
                assert codes or status in ("200", "201", "202"), (method, path, status)


@pytest.mark.parametrize("each", WITH_BODY)
def test_examples_of_bodies_can_be_sent(each: Operation) -> None:
    assert each.examples or each.bodiless
    where = f"/paths/{pointer(each.path)}/{each.method.lower()}/requestBody/content/application~1json/schema"
    for name, example in each.examples.items():
        decoded(json.dumps(example).encode(), each.body)
        check(where, example, f"{each.path}: {name}")


def test_every_command_has_an_example() -> None:
    (commands,) = [each for each in OPERATIONS if each.body is AnyCommand]
    assert list(commands.examples) == [command.__name__ for command in get_args(AnyCommand)]


def test_examples_of_problems_are_problems() -> None:
    seen = set()
    for path, operations in described()["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                for kind, content in response["content"].items():
                    for code, example in content.get("examples", {}).items():
                        where = f"/paths/{pointer(path)}/{method}/responses/{status}/content/{pointer(kind)}/schema"
                        if (code, kind) not in seen:
                            check(where, example["value"], f"{path}: {code}")
                        seen.add((code, kind))
    assert len(seen) > len(BY_CODE) - 5


def test_every_event_ever_written_is_described() -> None:
    for line in GOLDEN:
        check_component("Event", json.loads(line))


def test_an_event_of_each_type() -> None:
    event = described()["components"]["schemas"]["Event"]
    assert [each["$ref"].rpartition("/")[2] for each in event["oneOf"]] == [f"{name}Event" for name in PAYLOADS]
    assert list(event["discriminator"]["mapping"]) == list(PAYLOADS)


def test_an_erased_payload_is_described() -> None:
    erased = json.loads(GOLDEN[0])
    check_component("Event", {**erased, "data": None})
    with pytest.raises(AssertionError):
        check_component("Event", {**erased, "data": {"nonsense": 1}})


@pytest.mark.parametrize(
    ("path", "changed", "told"),
    [
        ("/api/model", {"status": "asleep"}, "asleep"),
        ("/api/model", {"colour": "red"}, "colour"),
        ("/api/nothing", {}, "no such operation"),
    ],
)
@pytest.mark.anyio
async def test_an_answer_that_is_not_described_is_noticed(path: str, changed: dict[str, Any], told: str) -> None:
    async with serving() as service:
        view = {**(await service.client.get("/api/model")).json(), **changed}
    headers = {"content-type": "application/json", "etag": '"1"'}
    answer = httpx.Response(200, json=view, headers=headers, request=httpx.Request("GET", f"http://x{path}"))
    with pytest.raises(AssertionError, match=told):
        await conforms(answer)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "own", "component"),
    [
        ("/v1/completions", {"prompt": "hello", "logprobs": 2}, "CompletionChunk"),
        ("/v1/completions", {"prompt": ["a", "b"], "sae": {"top_k_features": 2}}, "CompletionChunk"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}, "ChatCompletionChunk"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "hello"}], "logprobs": True, "top_logprobs": 2},
            "ChatCompletionChunk",
        ),
        ("/v1/completions", {"prompt": ["a", "b"], "sae": {"details": True, "details_of": [3]}}, "CompletionChunk"),
        ("/api/compare", {"prompt": "hello", "echo": True}, "ComparisonChunk"),
    ],
)
async def test_what_streams_is_described(service: Running, path: str, own: dict[str, Any], component: str) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [{"feature": 1, "strength": 2.0}]})
    body = {**own, "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
    async with aconnect_sse(service.client, "POST", path, json=body) as source:
        sent = [event.data async for event in source.aiter_sse()]
    assert sent.pop() == "[DONE]"
    assert len(sent) > 3
    for data in sent:
        check_component(component, json.loads(data))


@pytest.mark.anyio
async def test_the_log_as_lines_and_as_a_stream_is_described(service: Running) -> None:
    await service.ready()
    lines = (await service.client.get("/api/log", headers={"accept": "application/x-ndjson"})).text.splitlines()
    for line in lines:
        check_component("Event", json.loads(line))
    async with aconnect_sse(service.client, "GET", "/api/events") as source:
        async for event in source.aiter_sse():
            check_component("Event", event.json())
            if event.json()["position"] == len(lines):
                break


@pytest.mark.anyio
async def test_whether_a_token_is_needed_is_described() -> None:
    async with serving(tokens=("secret-token",)) as service:
        secured = (await service.client.get("/schema")).json()
        cookie = secured["components"]["securitySchemes"]["login"]["name"]
        session = await service.client.post("/login", json={"token": "secret-token"}, headers={"origin": service.url})
        assert cookie in session.cookies
    async with serving() as service:
        open_ = (await service.client.get("/schema")).json()
    assert secured["paths"]["/api/saes"]["get"]["security"] == [{"bearer": []}, {"login": []}]
    assert open_["paths"]["/api/saes"]["get"]["security"] == [{}, {"bearer": []}, {"login": []}]
    assert secured["paths"]["/health"]["get"]["security"] == []
