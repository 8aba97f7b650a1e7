"""`/v1/responses` through the official client, streamed and not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from httpx_sse import aconnect_sse
from openai import AsyncOpenAI

from sae_actor.domain.chats import Reasoning

from ..conforming import check_component
from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "default", "input": "hello", "max_output_tokens": 5}


@pytest.fixture
async def client(service: Running) -> AsyncIterator[AsyncOpenAI]:
    sae_id = await service.ready()
    await service.command("Steer", sae_id=sae_id, features=[{"feature": 3, "strength": 7.0}])
    async with AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


async def chat(service: Running, messages: list[dict[str, Any]], **more: Any) -> Any:
    body = {"messages": messages, "max_tokens": 5, **more}
    return (await service.client.post("/v1/chat/completions", json=body)).json()


async def test_the_first_example(client: AsyncOpenAI, service: Running) -> None:
    made = await client.responses.create(**ASK, temperature=0.0)
    same = await chat(service, [{"role": "user", "content": "hello"}], temperature=0.0)
    assert made.output_text == same["choices"][0]["message"]["content"] != ""
    assert (made.status, made.object, made.model) == ("incomplete", "response", MODEL)
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.usage is not None
    usage = same["usage"]
    assert (made.usage.input_tokens, made.usage.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert made.usage.total_tokens == usage["total_tokens"]
    sae = made.model_extra["sae"] if made.model_extra else {}
    assert sae["interventions"] == same["sae"]["interventions"]
    assert sae["receipt"] == same["sae"]["receipt"]
    started = [event for event in await service.events() if event["type"] == "GenerationStarted"]
    assert [event["data"]["kind"] for event in started] == ["chat", "chat"]
    assert started[0]["data"]["generation_id"] == made.id == sae["generation_id"]


async def test_a_text_that_ends_by_itself(client: AsyncOpenAI, service: Running) -> None:
    service.engine.ends_after = 3
    made = await client.responses.create(model=MODEL, input="hello")
    assert (made.status, made.incomplete_details) == ("completed", None)
    assert len(made.output_text) == 3


async def test_the_whole_conversation(client: AsyncOpenAI, service: Running) -> None:
    first = await client.responses.create(**ASK, temperature=0.0)
    conversation: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "hel"}, {"type": "input_text", "text": "lo"}]},
        *[item.model_dump() for item in first.output],
        {"type": "message", "role": "user", "content": "and now?"},
    ]
    made = await client.responses.create(**{**ASK, "input": conversation}, instructions="Be brief.", temperature=0.0)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and now?"},
    ]
    assert made.output_text == (await chat(service, messages, temperature=0.0))["choices"][0]["message"]["content"]
    assert made.instructions == "Be brief."


@pytest.mark.parametrize("thinks", [False, True])
async def test_streamed_is_unstreamed(thinks: bool, client: AsyncOpenAI, service: Running) -> None:
    if thinks:
        service.engine.script = service.engine.ids("<think>so</think>yes")
        service.engine.reasoning = Reasoning(format="block", begin="<think>", end="</think>")
    ask = {**ASK, "max_output_tokens": 40, "seed": 5}
    del ask["model"]
    extra = {"seed": ask.pop("seed")}
    whole = await client.responses.create(model="default", **ask, extra_body=extra)
    stream = await client.responses.create(model="default", **ask, extra_body=extra, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == f"response.{whole.status}"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 2
    last = events[-1].response.to_dict()
    expected = whole.to_dict()
    for each in (last, expected):
        each.pop("created_at")
        response_id, own = each.pop("id"), each["sae"]
        assert own.pop("generation_id") == response_id
        own.pop("position")
        for item in each["output"]:
            assert item.pop("id").endswith(response_id)
    assert last == expected
    kinds = [item["type"] for item in expected["output"]]
    assert kinds == (["reasoning", "message"] if thinks else ["message"])
    if thinks:
        assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "so"


async def test_the_helper_for_streams(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="default", input="hello", max_output_tokens=5, temperature=0.0) as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
    assert text == (await client.responses.create(**ASK, temperature=0.0)).output_text


async def test_its_own_intervention(client: AsyncOpenAI) -> None:
    bare = await client.responses.create(**ASK, extra_body={"sae": {"baseline": True}})
    assert bare.model_extra is not None
    assert bare.model_extra["sae"]["interventions"] == []
    with pytest.raises(openai.APIStatusError) as caught:
        await client.responses.create(**ASK, extra_body={"sae": {"expect_position": 0}})
    assert caught.value.status_code == 412


async def test_neutral_values_pass(client: AsyncOpenAI) -> None:
    made = await client.responses.create(
        **ASK,
        background=False, conversation=None, include=[], max_tool_calls=3, metadata={"a": "b"},
        parallel_tool_calls=True, previous_response_id=None, prompt_cache_key="k", reasoning={"effort": None},
        safety_identifier="me", service_tier="auto", store=True, text={"format": {"type": "text"}}, tool_choice="auto",
        tools=[], top_logprobs=0, truncation="disabled", user="me",
    )  # fmt: skip
    assert (made.metadata, made.user) == ({"a": "b"}, "me")
    assert (await client.responses.create(**ASK, include=["reasoning.encrypted_content"])).output_text
    assert (await client.responses.create(**ASK, include=["web_search_call.results"])).output_text
    tool: Any = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    assert (await client.responses.create(**ASK, tools=[tool], tool_choice="none")).output_text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}, "text.format"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
async def test_what_is_lacking_is_refused_by_its_name(
    more: dict[str, Any], param: str, client: AsyncOpenAI, service: Running
) -> None:
    position = service.actor.state.position
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="default", **{"input": "hello", **more})
    assert caught.value.param == param
    assert "supported" in str(caught.value) or "no setting" in str(caught.value)
    assert service.actor.state.position == position


async def test_a_field_that_nobody_publishes(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**ASK, extra_body={"colour": "red"})
    assert caught.value.param == "colour"


@pytest.mark.parametrize("tokens", [0, 2])
async def test_a_failure_is_an_error_of_the_client(tokens: int, client: AsyncOpenAI, service: Running) -> None:
    """Before the stream begins, and in its midst."""
    service.context.generations.deadline_seconds = 0.2
    service.engine.text_gate = gate = asyncio.Event()
    if tokens:
        gate.set()
        service.engine.step_seconds = 0.05
    with pytest.raises(openai.APIError, match="did not finish"):
        async for _ in await client.responses.create(model="default", input="hello", stream=True):
            pass


async def test_what_streams_is_described(client: AsyncOpenAI, service: Running) -> None:
    async with aconnect_sse(service.client, "POST", "/v1/responses", json={**ASK, "stream": True}) as source:
        events = [event async for event in source.aiter_sse()]
    for event in events:
        assert event.json()["type"] == event.event
        check_component("ResponseEvent", event.json())
    assert events[-1].event == "response.incomplete"


async def test_the_key_of_a_response() -> None:
    async with serving(record_text=True) as service:
        await service.ready()
        post = service.client.post
        first = await post("/v1/responses", json=ASK, headers={"Idempotency-Key": "k"})
        again = await post("/v1/responses", json=ASK, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.content) == (200, first.content)
        other = await post("/v1/responses", json={**ASK, "input": "x"}, headers={"Idempotency-Key": "k"})
        assert other.status_code == 422
        streamed = await post("/v1/responses", json={**ASK, "stream": True}, headers={"Idempotency-Key": "s"})
        assert streamed.status_code == 400


async def test_what_load_tools_send(service: Running) -> None:
    """guidellm's body: as many tokens as were asked for, whatever would end them; a stop that is none."""
    await service.ready()
    more = {"ignore_eos": True, "stop": None, "temperature": 0.0}
    made = (await service.client.post("/v1/responses", json={**ASK, **more})).json()
    assert made["usage"]["output_tokens"] == ASK["max_output_tokens"]
    plain = await chat(service, [{"role": "user", "content": "hello"}], **more)
    text = made["output"][0]["content"][0]["text"]
    assert text == plain["choices"][0]["message"]["content"]
    stop = text[1:3]
    ended = (await service.client.post("/v1/responses", json={**ASK, **more, "stop": [stop]})).json()
    assert ended["output"][0]["content"][0]["text"] == text[: text.index(stop)]
    assert ended["status"] == "completed"
