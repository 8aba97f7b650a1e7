"""Fields that OpenAI and vLLM publish, on both routes: neutral, accepted, done, or refused by name; never unknown."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_create_params

from sae_actor.api.text.fields import CHAT, COMPLETION, MESSAGE
from sae_actor.api.text.messages import ChatMessage, TextPart
from sae_actor.api.text.options import StreamOptions
from sae_actor.api.text.published import Inert, Neutral, Shape
from sae_actor.api.text.requests import ChatBody, CompletionBody

from ..conftest import Running
from .test_routes import ASK, chunks
from .test_routes import CHAT as ASK_CHAT

pytestmark = pytest.mark.anyio


def words(text: str) -> list[str]:
    return text.split()


VLLM = words("""
add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params frequency_penalty ignore_eos
include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_tokens min_p
min_tokens model n presence_penalty priority prompt_logprobs repetition_detection repetition_penalty request_id
response_format return_mm_kwargs return_token_ids return_token_offsets return_tokens_as_token_ids
routed_experts_prompt_start seed session_id skip_special_tokens spaces_between_special_tokens stop stop_token_ids
stream stream_interval stream_options structured_outputs temperature thinking_token_budget top_k top_p
truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking
""")
"""vllm.entrypoints.openai, of both requests."""
VLLM_CHAT = words("""
add_generation_prompt chat_template chat_template_kwargs continue_final_message documents echo include_reasoning
max_completion_tokens media_io_kwargs messages mm_processor_kwargs parallel_tool_calls reasoning_effort
return_prompt_text tool_choice tools top_logprobs
""")
VLLM_COMPLETION = words("""
echo prompt prompt_embeds suffix
""")
PATHS = {"/v1/completions": (COMPLETION, ASK), "/v1/chat/completions": (CHAT, ASK_CHAT)}


def named(*params: Any) -> set[str]:
    return {name for each in params for name in get_type_hints(each, include_extras=True)}


def answered(shape: Shape, struct: type[msgspec.Struct]) -> set[str]:
    return {*shape.fields, *struct.__struct_fields__}


@pytest.mark.parametrize(
    ("published", "known"),
    [
        (
            named(completion_create_params.CompletionCreateParamsStreaming) | {*VLLM, *VLLM_COMPLETION},
            answered(COMPLETION, CompletionBody),
        ),
        (
            named(chat_create_params.CompletionCreateParamsStreaming) | {*VLLM, *VLLM_CHAT},
            answered(CHAT, ChatBody),
        ),
        (
            named(
                ChatCompletionAssistantMessageParam,
                ChatCompletionDeveloperMessageParam,
                ChatCompletionFunctionMessageParam,
                ChatCompletionSystemMessageParam,
                ChatCompletionToolMessageParam,
                ChatCompletionUserMessageParam,
            ),
            answered(MESSAGE, ChatMessage),
        ),
        (named(ChatCompletionContentPartTextParam), answered(MESSAGE.inside["content"], TextPart)),
        (named(ChatCompletionStreamOptionsParam), answered(CHAT.inside["stream_options"], StreamOptions)),
    ],
    ids=["completion", "chat", "message", "part", "stream_options"],
)
def test_every_published_field_is_known(published: set[str], known: set[str]) -> None:
    assert published - known == set()


@pytest.mark.parametrize(
    ("shape", "struct"),
    [(COMPLETION, CompletionBody), (CHAT, ChatBody), (MESSAGE, ChatMessage),
     (MESSAGE.inside["content"], TextPart), (CHAT.inside["stream_options"], StreamOptions)],
    ids=lambda each: getattr(each, "name", ""),
)  # fmt: skip
def test_no_field_that_is_done_stands_in_the_table_as_lacking(shape: Shape, struct: type[msgspec.Struct]) -> None:
    lacking = {name for name, row in shape.fields.items() if isinstance(row, Neutral | Inert)}
    assert lacking & set(struct.__struct_fields__) == set()


EMPTY: dict[str, Any] = {"string": "", "array": [], "object": {}}
OTHER: dict[str, Any] = {
    "boolean": True, "integer": 7, "number": 0.37, "string": "x", "array": [{"x": 1}], "object": {"x": 1},
    "any": {"x": 1},
}  # fmt: skip
WRONG: dict[str, Any] = {
    "boolean": 1, "integer": 1.5, "number": True, "string": 5, "array": {}, "object": [], "any": None,
}  # fmt: skip


def rows(kind: type) -> list[Any]:
    return [
        pytest.param(path, name, row, id=f"{path[4:]} {name}")
        for path, (shape, _) in PATHS.items()
        for name, row in shape.fields.items()
        if isinstance(row, kind)
    ]


async def asked(service: Running, path: str, **fields: Any) -> tuple[int, Any]:
    answer = await service.client.post(path, json={**PATHS[path][1], "max_tokens": 1, **fields})
    return answer.status_code, answer.json()


async def test_values_that_ask_for_nothing_pass(service: Running) -> None:
    """One by one for each field of the table, and all of them together."""
    await service.ready()
    for path, (shape, _) in PATHS.items():
        whole: dict[str, Any] = {}
        for name, row in shape.fields.items():
            if not isinstance(row, Neutral):
                continue
            neutral = [None, *row.values, *([EMPTY[row.kind]] if row.kind in EMPTY else [])]
            for value in neutral:
                assert (await asked(service, path, **{name: value}))[0] == 200, (path, name, value)
            whole[name] = neutral[-1]
        status, answer = await asked(service, path, **whole)
        assert status == 200, answer
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("path", "name", "row"), rows(Neutral))
async def test_what_we_lack_is_refused_by_its_name(service: Running, path: str, name: str, row: Neutral) -> None:
    await service.ready()
    value = not row.values[0] if row.kind == "boolean" else OTHER[row.kind]
    status, answer = await asked(service, path, **{name: value})
    assert (status, answer["error"]["param"]) == (400, name)
    assert answer["error"]["message"] == f"{name}: this value is not supported: {row.why}"
    if row.kind != "any":
        status, answer = await asked(service, path, **{name: WRONG[row.kind]})
        assert (status, answer["error"]["param"]) == (400, name)
        assert answer["error"]["message"] == f"{name}: expected {row.kind} or null"


ACCEPTED: dict[str, Any] = {
    "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "prompt_cache_key": "k",
    "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}, "safety_identifier": "s",
    "length_penalty": 2.0, "truncation_side": "left", "session_id": "s", "cache_salt": "salt",
    "return_token_offsets": True, "return_mm_kwargs": False, "parallel_tool_calls": False,
}  # fmt: skip


@pytest.mark.parametrize(("path", "name", "row"), rows(Inert))
async def test_what_changes_no_text_is_accepted(service: Running, path: str, name: str, row: Inert) -> None:
    await service.ready()
    for value in (ACCEPTED[name], None):
        assert (await asked(service, path, **{name: value}))[0] == 200
    status, answer = await asked(service, path, **{name: [5]})
    assert (status, answer["error"]["param"]) == (400, name)


@pytest.mark.parametrize("path", PATHS)
async def test_what_nobody_publishes_is_unknown(service: Running, path: str) -> None:
    await service.ready()
    value: Any
    for value in (None, "", [], 1):
        status, answer = await asked(service, path, nonsense=value)
        assert (status, answer["error"]["param"]) == (400, "nonsense")
        assert "unknown field" in answer["error"]["message"]


MESSAGE_SAID = {"role": "assistant", "content": "Hi"}
ECHOED: dict[str, Any] = {
    "role": "assistant", "content": None, "refusal": None, "tool_calls": None, "function_call": None, "audio": None,
    "annotations": [], "name": "me", "reasoning_content": None, "cache_control": {"type": "ephemeral"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "same"),
    [
        (ECHOED, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "tool_calls": []}, {"role": "assistant", "content": ""}),
        ({"role": "developer", "content": "Be kind"}, {"role": "system", "content": "Be kind"}),
        ({"role": "user", "name": "ann", "content": "Hi"}, {"role": "user", "content": "Hi"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "H", "cache_control": {"type": "ephemeral"}}, "i"]},
            {"role": "user", "content": "Hi"},
        ),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
    ],
)
async def test_messages_that_say_the_same(service: Running, message: dict[str, Any], same: dict[str, Any]) -> None:
    await service.ready()
    said = [{"role": "user", "content": "Hello"}]
    found = [
        await asked(service, "/v1/chat/completions", max_tokens=8, messages=[each, *said]) for each in (message, same)
    ]
    assert found[0][1]["choices"] == found[1][1]["choices"]
    assert found[0][1]["usage"] == found[1][1]["usage"]
    read = await service.client.post("/api/activations", json={"messages": [message, *said]})
    assert len(read.json()["token_ids"]) == found[1][1]["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("message", "param", "told"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "c"}, "messages[0].role", "'tool' is not supported"),
        ({"role": "function", "content": "4", "name": "f"}, "messages[0].role", "'function' is not supported"),
        ({**MESSAGE_SAID, "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls", "not supported"),
        ({**MESSAGE_SAID, "refusal": "no"}, "messages[0].refusal", "not supported"),
        ({**MESSAGE_SAID, "audio": {"id": "a"}}, "messages[0].audio", "not supported"),
        ({**MESSAGE_SAID, "mood": None}, "mood", "unknown field"),
        ({"role": "user"}, "messages[0]", "missing required field `content`"),
        ({"role": "wizard", "content": "x"}, "messages[0].role", "Invalid enum value"),
        (
            {"role": "user", "content": ["a", {"type": "image_url", "image_url": {"url": ""}}]},
            "messages[0].content[1].type",
            "'image_url' is not supported",
        ),
        ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, "x", "unknown field"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "cache_control": 5}]},
         "messages[0].content[0].cache_control", "Expected `object | null`"),
    ],
)  # fmt: skip
async def test_messages_that_are_refused(service: Running, message: dict[str, Any], param: str, told: str) -> None:
    await service.ready()
    status, answer = await asked(service, "/v1/chat/completions", messages=[message])
    assert (status, answer["error"]["param"]) == (400, param)
    assert told in answer["error"]["message"]


async def test_tools_that_may_not_be_called_are_none(service: Running) -> None:
    await service.ready()
    path, tool = "/v1/chat/completions", {"type": "function", "function": {"name": "f"}}
    bare = (await asked(service, path))[1]["choices"]
    for fields in (
        {"tools": [tool], "tool_choice": "none"},
        {"functions": [tool["function"]], "function_call": "none"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    ):
        assert (await asked(service, path, **fields))[1]["choices"] == bare
    for more in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}):
        status, answer = await asked(service, path, tools=[tool], **more)
        assert (status, answer["error"]["param"]) == (400, "tools")
    status, answer = await asked(service, path, tool_choice={"type": "function", "function": {"name": "f"}})
    assert (status, answer["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("whole", [True, False])
async def test_usage_with_each_chunk(service: Running, path: str, whole: bool) -> None:
    await service.ready()
    asked_for = dict(PATHS[path][1])
    if "prompt" in asked_for:
        asked_for["prompt"] = [asked_for["prompt"], "Hi"]
    options = {"include_usage": whole, "continuous_usage_stats": True}
    found = await chunks(service, path, {**asked_for, "stream_options": options})
    last = found[-1]["usage"]
    assert last == (await service.client.post(path, json=asked_for)).json()["usage"]
    assert [each["usage"]["prompt_tokens"] for each in found] == [last["prompt_tokens"]] * len(found)
    counted = [each["usage"]["completion_tokens"] for each in found]
    assert counted == sorted(counted)
    assert (counted[0], counted[-1]) == (1, 16 if path == "/v1/completions" else 8)
    assert (found[-1]["choices"] == []) is whole


async def test_they_are_described(service: Running) -> None:
    """Each row is a property, and the description takes what the service takes."""
    schemas = (await service.client.get("/schema")).json()["components"]["schemas"]
    for shape in (COMPLETION, CHAT, MESSAGE, MESSAGE.inside["content"], CHAT.inside["stream_options"]):
        said = schemas[shape.name]["properties"]
        for name, row in shape.fields.items():
            assert name in said, (shape.name, name)
            if isinstance(row, Neutral | Inert):
                assert row.why in said[name]["description"]
    beam_search = schemas["CompletionBody"]["properties"]["use_beam_search"]["anyOf"]
    assert beam_search == [{"type": "boolean", "const": False}, {"type": "null"}]
