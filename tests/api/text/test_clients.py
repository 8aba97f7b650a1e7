"""What common clients send for the first example of their documentation, recorded: done, or refused by its name.

Recorded from openai 3.57, langchain-openai, LiteLLM, LlamaIndex (openai-like), DSPy, AutoGen, pydantic-ai, instructor,
Inspect, openai-agents and llm; written down from the sources of guidellm, `vllm bench serve` and lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import sae_actor.engine.tokens.answers  # noqa: F401 - the fake engine imports it, and torch, where a client would wait
from tests.fakes.engine import FakeEngine

from ..conftest import Running, serving
from .test_routes import chunks

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PERSON = {
    "properties": {"name": {"title": "Name", "type": "string"}, "age": {"title": "Age", "type": "integer"}},
    "required": ["name", "age"], "title": "Person", "type": "object",
}  # fmt: skip
USAGE = {"include_usage": True, "continuous_usage_stats": True}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai: developer": (CHAT, {"messages": [
        {"role": "developer", "content": "Talk like a pirate."}, user("How do I check?")]}),
    "openai: an answer sent back": (CHAT, {"messages": [
        user("Hi"), {"content": "Hello", "role": "assistant"}, user("And?")]}),
    "openai: an answer dumped and sent back": (CHAT, {"messages": [
        user("Hi"),
        {"content": "Hello", "refusal": None, "role": "assistant", "annotations": None, "audio": None,
         "function_call": None, "tool_calls": None},
        user("And?")]}),
    "langchain": (CHAT, {"messages": [
        {"content": "You translate English to French.", "role": "system"}, user("I love programming.")],
        "stream": False}),
    "langchain: stream": (CHAT, {"messages": [user("Hi")], "stream": True}),
    "langchain: completion": (COMPLETIONS, {
        "prompt": ["Say this is a test"], "frequency_penalty": 0, "logprobs": None, "max_tokens": 256, "n": 1,
        "presence_penalty": 0, "seed": None, "temperature": 0.7, "top_p": 1}),
    "litellm: cache_control": (CHAT, {"messages": [
        user([{"type": "text", "text": "Hello, how are you?", "cache_control": {"type": "ephemeral"}}])]}),
    "llama-index": (CHAT, {"messages": [
        {"role": "system", "content": "You are a pirate"}, user("What is your name")],
        "stream": False, "temperature": 0.1}),
    "llama-index: completion": (COMPLETIONS, {"prompt": "Paul Graham is ", "stream": False, "temperature": 0.1}),
    "dspy": (CHAT, {"messages": [
        {"role": "system", "content": "Your input fields are:\n1. `question` (str):"},
        user("[[ ## question ## ]]\nTwo dice are tossed.")]}),
    "autogen": (CHAT, {"stream": False, "messages": [
        {"content": "You are a helpful AI assistant.", "role": "system"},
        {"role": "user", "name": "user", "content": "Say 'Hello World!'"}]}),
    "pydantic-ai": (CHAT, {"stream": False, "messages": [
        {"role": "system", "content": "Be concise."}, user("Where does hello world come from?"),
        {"role": "assistant", "content": "C"}, user("And?")]}),
    "inspect": (CHAT, {"messages": [
        user("Hi"), {"role": "assistant", "content": "Hello"}, user("Again")], "max_tokens": 5}),
    "openai-agents": (CHAT, {"messages": [
        {"content": "You are a helpful assistant", "role": "system"}, user("Write a haiku about recursion.")]}),
    "llm": (CHAT, {"messages": [user("Ten fun names for a pet pelican")], "stream": True,
                   "stream_options": {"include_usage": True}}),
    "guidellm: completion": (COMPLETIONS, {
        "prompt": "Once upon a time", "stream": True, "stream_options": USAGE, "max_tokens": 32, "stop": None,
        "ignore_eos": True}),
    "guidellm: chat": (CHAT, {
        "messages": [user([{"type": "text", "text": "Once upon a time"}])], "stream": True, "stream_options": USAGE,
        "max_completion_tokens": 32, "stop": None, "ignore_eos": True}),
    "vllm bench serve": (COMPLETIONS, {
        "prompt": "Once upon a time", "repetition_penalty": 1.0, "max_tokens": 16, "logprobs": None, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True}),
    "vllm bench serve: chat": (CHAT, {
        "messages": [user([{"type": "text", "text": "Once upon a time"}])], "max_completion_tokens": 16,
        "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0}),
    "lm-eval: loglikelihood": (COMPLETIONS, {
        "prompt": [list(b"Question: 2 + 2 =\nAnswer: 4"), list(b"Question: 2 + 2 =\nAnswer: 5")], "temperature": 0,
        "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}),
    "lm-eval: generate_until": (COMPLETIONS, {
        "prompt": [list(b"Question: 2 + 2 =\nAnswer:")], "max_tokens": 64, "temperature": 0, "stop": ["\n\n"],
        "seed": 1234}),
    "lm-eval: chat": (CHAT, {
        "messages": [{**user("2 + 2 ="), "type": "text"}], "max_tokens": 64, "temperature": 0, "stop": ["\n\n"],
        "seed": 1234}),
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "instructor: tools": (
        {"messages": [user("Ann is 3")], "tool_choice": {"type": "function", "function": {"name": "Person"}},
         "tools": [{"type": "function", "function": {"name": "Person", "parameters": PERSON}}]},
        ("tools", "tool_choice"),
    ),
}  # fmt: skip
FORMATS: dict[str, dict[str, Any]] = {
    "instructor: json": {"type": "json_object"},
    "instructor: json_schema": {"type": "json_schema", "json_schema": {"name": "Person", "schema": PERSON}},
}


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with serving(engine=FakeEngine(context_length=1024)) as running:
        await running.ready()
        yield running


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
async def test_a_clients_first_example(service: Running, path: str, body: dict[str, Any]) -> None:
    sent = {"model": "default", "max_tokens": 8, **body}
    if "max_completion_tokens" in body:
        del sent["max_tokens"]
    tokens = int(sent["max_completion_tokens"] if "max_completion_tokens" in sent else sent["max_tokens"])
    if body.get("stream"):
        found = await chunks(service, path, sent)
        choices = [choice for each in found for choice in each["choices"]]
        if body.get("stream_options"):
            assert found[-1]["usage"]["completion_tokens"] == tokens
            usages = [each["usage"] for each in found if each.get("usage")]
            assert len(usages) == (len(found) if body["stream_options"] is USAGE else 1)
        assert choices[-1]["finish_reason"] == "length"
        return
    answer = await service.client.post(path, json=sent)
    assert answer.status_code == 200, answer.text
    assert {choice["finish_reason"] for choice in answer.json()["choices"]} == {"length"}
    prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    assert answer.json()["usage"]["completion_tokens"] == tokens * prompts


@pytest.mark.parametrize(("body", "params"), REFUSED.values(), ids=REFUSED)
async def test_refused_by_its_name(service: Running, body: dict[str, Any], params: tuple[str, ...]) -> None:
    answer = await service.client.post(CHAT, json={"model": "default", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] in params
    assert "not supported" in error["message"]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
async def test_a_form_is_kept_or_refused_by_its_name(service: Running, form: dict[str, Any]) -> None:
    answer = await service.client.post(
        CHAT, json={"model": "default", "messages": [user("Ann is 3")], "max_tokens": 8, "response_format": form}
    )
    assert answer.status_code == 200 or answer.json()["error"]["param"] == "response_format"
