"""What the official `openai` client must get from a service, whatever engine is behind it.

Each check is given a client and what to steer with; the service has one SAE attached and nothing steered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NamedTuple

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field


class Service(NamedTuple):
    """A running service as the client sees it."""

    client: AsyncOpenAI
    model_id: str
    sae_id: str
    edit: dict[str, Any]
    """That changes what the prompts below are answered with."""


PROMPT = "Once upon a time"
MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]
GREEDY: dict[str, Any] = {"model": "default", "max_tokens": 4, "temperature": 0}
SAMPLED: dict[str, Any] = {"model": "default", "max_tokens": 5, "temperature": 1.2, "top_p": 0.95}


def sae(answer: Any) -> dict[str, Any]:
    """The extension object, which the client keeps as it does every field that it does not know."""
    found: dict[str, Any] = answer.model_extra["sae"]
    return found


async def models(service: Service) -> None:
    listed = [model async for model in service.client.models.list()]
    assert [model.id for model in listed] == [service.model_id]
    assert (await service.client.models.retrieve("default")).id == service.model_id
    with pytest.raises(openai.NotFoundError) as caught:
        await service.client.models.retrieve("none-such")
    assert caught.value.code == "model_not_found"


async def completion(service: Service) -> None:
    answer = await service.client.completions.create(prompt=PROMPT, **GREEDY)
    assert (answer.object, answer.model) == ("text_completion", service.model_id)
    assert answer.system_fingerprint is not None
    assert answer.usage is not None
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 4)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    assert sae(answer)["receipt"]["tokens_prompt"] == answer.usage.prompt_tokens
    several = await service.client.completions.create(prompt=[PROMPT, "Hello"], **GREEDY)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == answer.choices[0].text
    echoed = await service.client.completions.create(prompt=PROMPT, echo=True, **GREEDY)
    assert echoed.choices[0].text == PROMPT + answer.choices[0].text
    stop = answer.choices[0].text.strip()[:2]
    stopped = await service.client.completions.create(prompt=PROMPT, stop=[stop], **GREEDY)
    assert (stopped.choices[0].finish_reason, stop in stopped.choices[0].text) == ("stop", False)


async def chat(service: Service) -> None:
    answer = await service.client.chat.completions.create(messages=MESSAGES, **GREEDY)
    (choice,) = answer.choices
    assert (answer.object, choice.message.role, choice.finish_reason) == ("chat.completion", "assistant", "length")
    assert choice.message.content
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    same = await service.client.chat.completions.create(
        model="default", messages=parts, max_completion_tokens=4, temperature=0
    )
    assert same.choices[0].message.content == choice.message.content


async def streamed_is_unstreamed(service: Service) -> None:
    for settings in (GREEDY, {**SAMPLED, "seed": 11}):
        whole = await service.client.completions.create(prompt=PROMPT, **settings)
        stream = await service.client.completions.create(
            prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **settings
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert text == whole.choices[0].text
        assert chunks[-1].usage == whole.usage
        assert sae(chunks[-1])["receipt"] == sae(whole)["receipt"]
    answer = await service.client.chat.completions.create(messages=MESSAGES, **GREEDY)
    deltas = await service.client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
    said = [choice async for chunk in deltas for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == answer.choices[0].message.content
    assert (said[0].delta.role, said[-1].finish_reason) == ("assistant", "length")


async def logprobs(service: Service) -> None:
    answer = await service.client.completions.create(prompt=PROMPT, logprobs=2, **GREEDY)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens) == answer.choices[0].text
    for token, own, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert own is not None
        assert (top[token], max(top.values())) == (own, own), "greedy takes the most probable"
    said = await service.client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY)
    entries = said.choices[0].logprobs
    assert entries is not None
    assert entries.content is not None
    assert "".join(each.token for each in entries.content) == said.choices[0].message.content
    for entry in entries.content:
        assert (len(entry.top_logprobs), entry.top_logprobs[0].token) == (3, entry.token)
        assert 0 >= entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


async def seed(service: Service) -> None:
    """The same seed gives the same text, alone and beside other requests; another seed another text."""

    async def text(seed: int) -> str:
        answer = await service.client.completions.create(prompt=PROMPT, seed=seed, **SAMPLED)
        assert sae(answer)["seed"] == seed
        made: str = answer.choices[0].text
        return made

    alone = [await text(each) for each in (3, 4)]
    assert alone[0] != alone[1]
    others = [
        asyncio.ensure_future(
            service.client.completions.create(
                prompt=f"{n} and ", seed=n, extra_body={"sae": {"steering": [service.edit]}}, **SAMPLED
            )
        )
        for n in range(3)
    ]
    assert [*await asyncio.gather(text(3), text(4))] == alone
    await asyncio.gather(*others)
    chosen = await service.client.completions.create(prompt=PROMPT, **SAMPLED)
    assert await text(sae(chosen)["seed"]) == chosen.choices[0].text


async def extension(service: Service) -> None:
    own = {"sae": {"steering": [service.edit], "top_k_features": 2, "tag": "ticket 7"}}
    bare = await service.client.completions.create(prompt=PROMPT, extra_body={"sae": {"baseline": True}}, **GREEDY)
    assert sae(bare)["interventions"] == []
    steered = await service.client.completions.create(prompt=PROMPT, extra_body=own, **GREEDY)
    told = sae(steered)
    assert steered.choices[0].text != bare.choices[0].text
    (active,) = told["interventions"]
    assert active["sae_id"] == service.sae_id
    assert [edit["feature"] for edit in active["steering"]] == [service.edit["feature"]]
    receipt = told["receipt"]
    assert receipt["tokens_edited"] + receipt["tokens_excluded"] == receipt["tokens_prompt"] + 3
    assert len(told["features"]) == receipt["tokens_prompt"] + 3
    answer = await service.client.chat.completions.create(messages=MESSAGES, extra_body=own, **GREEDY)
    assert sae(answer)["intervention_sha256"] == told["intervention_sha256"]
    stream = await service.client.completions.create(prompt=PROMPT, extra_body=own, stream=True, **GREEDY)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == steered.choices[0].text
    assert sae(chunks[-1])["features"] == told["features"]


class Pet(BaseModel):
    """What a chat is parsed as."""

    kind: Literal["cat", "dog"]
    legs: Annotated[int, Field(ge=0, le=9)]


async def choices(service: Service) -> None:
    answer = await service.client.chat.completions.create(messages=MESSAGES, n=3, seed=4, **SAMPLED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.model_extra is not None for choice in answer.choices)
    receipts = [(choice.model_extra or {})["sae"] for choice in answer.choices]
    assert [receipt["seed"] for receipt in receipts] == [4, 5, 6]


async def structured(service: Service) -> None:
    settings = {**SAMPLED, "max_tokens": 60}
    answer = await service.client.chat.completions.parse(messages=MESSAGES, response_format=Pet, n=2, **settings)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Pet)


async def refusals(service: Service) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await service.client.completions.create(prompt=PROMPT, n=17, **GREEDY)
    assert (caught.value.param, caught.value.code) == ("n", "bad_request")
    with pytest.raises(openai.BadRequestError) as caught:
        await service.client.completions.create(model="default", prompt=PROMPT, max_tokens=10**6)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError):
        await service.client.completions.create(prompt=PROMPT, **{**GREEDY, "model": "another"})
    extra = {"sae": {"steering": [{"feature": 10**6, "strength": 1}]}}
    with pytest.raises(openai.UnprocessableEntityError) as out:
        await service.client.completions.create(prompt=PROMPT, extra_body=extra, **GREEDY)
    assert out.value.code == "feature_out_of_range"


CHECKS: tuple[Callable[[Service], Awaitable[None]], ...] = (
    models,
    completion,
    chat,
    streamed_is_unstreamed,
    logprobs,
    seed,
    extension,
    choices,
    structured,
    refusals,
)
