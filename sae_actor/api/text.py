"""`/v1`: text under the intervention of the moment, in OpenAI's shapes, streamed or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from litestar.response import Stream

from ..actor import Done, RunningText, Tell
from ..domain import attaching
from ..domain.refs import ModelFacts
from ..errors import ModelNotFoundError, SAEError
from .beside import abandon, ends, merged
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
    return answer(request, {"object": "list", "data": [] if facts is None else [_model(facts)]})


@operation("GET", "/v1/models/{model_id}", "The loaded model, by its id or as `default`", errors=("model_not_found",),
           rest=True, tag="text")  # fmt: skip
async def get_v1_model(request: AnyRequest) -> Answer:
    wanted = request.path_params["model_id"].strip("/")
    model = state_of(request).model
    facts = model.facts if model is not None else None
    if facts is None or wanted not in (facts.model_id.strip("/"), "default"):
        raise ModelNotFoundError(f"no model {wanted[:200]} is loaded", param="model")
    return answer(request, _model(facts))


def _model(facts: ModelFacts) -> dict[str, Any]:
    return {"id": facts.model_id, "object": "model", "created": 0, "owned_by": "sae-actor"}


@operation("POST", "/v1/completions",
           "Complete a prompt, or several: each is a generation of its own. `sae` of the answer is the first one's; "
           "where there are several, each choice has its own `sae` too (streamed: in the choice's last chunk)",
           body=CompletionBody, answers=ANSWERS, errors=ERRORS, tag="text")  # fmt: skip
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
    choices = await _opened(request, body, kind, model)
    texts = [choice.text for choice in choices]
    reply = Reply(kind, model, choices, int(time.time()))
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks(reply, include_usage)
        # The first chunk comes before the status line: what fails at once is answered with its own status.
        async with abandoned_with_client(request, texts):
            first = await anext(chunks)
        return streamed(first, chunks)
    async with abandoned_with_client(request, texts):
        done = await ends(texts)
    return answer(request, reply.whole(done))


async def _opened(request: AnyRequest, body: TextBody, kind: Kind, model: ModelFacts) -> tuple[Choice, ...]:
    """One admitted text for each prompt, in order; none is left running where one is refused."""
    engine, texts = context(request).engine, context(request).texts
    prompts = [await engine.tokenize(prompt) for prompt in body.prompts()]
    settings = [sampling(body, len(prompt.token_ids), model) for prompt in prompts]
    tell = Tell(logprobs=body.scores, top_k_features=(body.sae and body.sae.top_k_features) or 0)
    choices: list[Choice] = []
    try:
        for prompt, own in zip(prompts, settings, strict=True):
            ask = partial(admission, kind=kind, body=body, tokens=prompt.token_ids, settings=own)
            text = await texts.open(ask, prompt.token_ids, principal=principal(request), tell=tell)
            echo = "".join(prompt.tokens) if body.echoes else ""
            choices.append(Choice(kind, len(choices), text, prompt, echo, body.scores is not None))
    except BaseException:
        abandon([choice.text for choice in choices])
        raise
    return tuple(choices)


async def _chunks(reply: Reply, include_usage: bool) -> AsyncIterator[bytes]:
    """Chunks of all choices as they come; the extension of each is in its last one, where there are several."""

    def shown(choice: dict[str, Any]) -> bytes:
        return chunk({**reply.envelope(chunk=True), "choices": [choice]})

    unheard = {choice.index for choice in reply.choices}
    done: dict[int, Done] = {}
    started = False
    for choice in reply.choices:
        if choice.echo:
            started = True
            yield shown(choice.part(choice.echo))
    try:
        async for index, item in merged([choice.text for choice in reply.choices]):
            choice, first = reply.choices[index], index in unheard
            if isinstance(item, Done):
                done[index] = item
                if len(done) == len(reply.choices) and not include_usage:
                    break
                yield shown(reply.last(choice, item, first=first))
            elif item.text or first or choice.scores:
                yield shown(choice.part(item.text, (item,), first=first))
            started = True
            unheard.discard(index)
    except SAEError as error:
        if not started:
            raise
        yield chunk(openai_view(error))
        return
    ended = [done[choice.index] for choice in reply.choices]
    last: dict[str, Any] = {**reply.envelope(chunk=True), "choices": [], "usage": reply.usage(ended)}
    if not include_usage:
        last = {**reply.envelope(chunk=True), "choices": [reply.last(choice, done[index], first=first)]}
    yield chunk({**last, "sae": reply.choices[0].extension(ended[0])})
    yield b"data: [DONE]\n\n"


def chunk(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def streamed(first: bytes, rest: AsyncIterator[bytes]) -> Answer:
    """Server-sent events, of which the first is there."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(_after(first, rest), media_type="text/event-stream", headers=headers)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for each in rest:
        yield each


@asynccontextmanager
async def abandoned_with_client(request: AnyRequest, texts: Sequence[RunningText]) -> AsyncIterator[None]:
    """Stop the texts when the client hangs up: nobody would read them."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        abandon(texts)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
