"""`/v1`: text under the intervention of the moment, in OpenAI's shapes, streamed or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from litestar.response import Stream

from ..actor import Done, RunningText
from ..domain import attaching
from ..errors import SAEError
from .bodies import body_of
from .context import context, principal
from .openai import ChatBody, CompletionBody, TextBody, admission, sampling
from .problems import openai_view
from .replies import Choice, Kind, Reply
from .routes import Answer, AnyRequest, answer, operation, state_of

ERRORS = (
    "model_not_loaded", "model_not_found", "not_ready", "sae_not_attached", "sae_not_found", "sae_ambiguous",
    "feature_out_of_range", "conflicting_edits", "precondition_failed", "mailbox_full", "out_of_memory", "read_only",
)  # fmt: skip
ANSWERS = ((200, "application/json"), (200, "text/event-stream"))


@operation("GET", "/v1/models", "The loaded model, as OpenAI's clients list it", tag="text")
async def list_models(request: AnyRequest) -> Answer:
    model = state_of(request).model
    facts = model.facts if model is not None else None
    data = [] if facts is None else [{"id": facts.model_id, "object": "model", "created": 0, "owned_by": "sae-actor"}]
    return answer(request, {"object": "list", "data": data})


@operation("POST", "/v1/completions", "Complete a prompt", body=CompletionBody, answers=ANSWERS, errors=ERRORS,
           tag="text")  # fmt: skip
async def completions(request: AnyRequest) -> Answer:
    body: CompletionBody = await body_of(request, CompletionBody)
    return await _respond(request, body, "completion")


@operation("POST", "/v1/chat/completions", "Answer a chat", body=ChatBody, answers=ANSWERS, errors=ERRORS, tag="text")
async def chat_completions(request: AnyRequest) -> Answer:
    body: ChatBody = await body_of(request, ChatBody)
    return await _respond(request, body, "chat")


async def _respond(request: AnyRequest, body: TextBody, kind: Kind) -> Answer:
    model = attaching.loaded_model(state_of(request))
    body.check(model)
    prompt = body.only_prompt() if isinstance(body, CompletionBody) else _messages(body)
    tokenized = await context(request).engine.tokenize(prompt)
    settings = sampling(body, len(tokenized.token_ids), model)
    ask = partial(admission, kind=kind, body=body, tokens=tokenized.token_ids, settings=settings)
    text = await context(request).texts.open(
        ask, tokenized.token_ids, principal=principal(request), logprobs=body.scores
    )
    echo = "".join(tokenized.tokens) if isinstance(body, CompletionBody) and body.echo else ""
    choice = Choice(kind, 0, text, tokenized, echo, body.scores is not None)
    reply = Reply(kind, model, (choice,), int(time.time()))
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks(reply, choice, include_usage)
        # The first chunk comes before the status line: what fails at once is answered with its own status.
        async with _abandoned_with_client(request, text):
            first = await anext(chunks)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return Stream(_after(first, chunks), media_type="text/event-stream", headers=headers)
    async with _abandoned_with_client(request, text):
        done = await text.result()
    return answer(request, reply.whole([done]))


def _messages(body: TextBody) -> list[dict[str, str]]:
    assert isinstance(body, ChatBody)
    return [message.plain() for message in body.messages]


async def _chunks(reply: Reply, choice: Choice, include_usage: bool) -> AsyncIterator[bytes]:
    first = True
    if choice.echo:
        yield _chunk({**reply.envelope(chunk=True), "choices": [choice.part(choice.echo)]})
    try:
        async for item in choice.text:
            if isinstance(item, Done):
                break
            if item.text or first or choice.scores:
                part = choice.part(item.text, (item,), first=first)
                yield _chunk({**reply.envelope(chunk=True), "choices": [part]})
                first = False
    except SAEError as error:
        if first:
            raise
        yield _chunk(openai_view(error))
        return
    done = item
    assert isinstance(done, Done)
    last = {**reply.envelope(chunk=True), "choices": [choice.last(done, first=first)]}
    if include_usage:
        yield _chunk(last)
        last = {**reply.envelope(chunk=True), "choices": [], "usage": reply.usage([done])}
    yield _chunk({**last, "sae": choice.extension(done)})
    yield b"data: [DONE]\n\n"


def _chunk(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


@asynccontextmanager
async def _abandoned_with_client(request: AnyRequest, text: RunningText) -> AsyncIterator[None]:
    """Stop the text when the client hangs up: nobody would read it."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        text.abandon()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
