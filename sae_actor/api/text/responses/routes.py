"""`/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

from ....generations import abandon, ends
from ...answers import answer
from ...operations import operation
from ...requests import body_of
from ...streaming import Streamed, followed_by
from ...types import Answer, AnyRequest
from ..answers import ChatCompletion, ChatCompletionChunk
from ..idempotency import Made, answered_once, asked_under_key
from ..replies import Reply
from ..routes import ANSWERS, KEYED, opened
from ..stream import abandoned_with_client, chunks
from .answers import ModelResponse, ResponseEvent, whole
from .events import frames
from .requests import ResponsesBody, check_kinds

EXAMPLE: dict[str, Any] = {"model": "default", "input": "Tell me about your day.", "max_output_tokens": 40}


@operation("POST", "/v1/responses",
           "Answer a conversation in OpenAI's newer shape: text in, text out, on record as a chat. Nothing is stored "
           "to be continued: send the whole conversation as `input`",
           body=ResponsesBody, answers=ANSWERS, returns=ModelResponse, items=ResponseEvent, errors=KEYED,
           keyed=True, examples={"streamed": {**EXAMPLE, "stream": True}, "steered": {
               **EXAMPLE, "sae": {"steering": [{"feature": 74, "strength": 100.0}]}}},
           users=True, tag="text")  # fmt: skip
async def responses(request: AnyRequest) -> Answer:
    check_kinds(await request.body())
    body: ResponsesBody = await body_of(request, ResponsesBody)
    body.check()
    chat = body.chat()

    def shown(request: AnyRequest, made: Made) -> Answer:
        reply, done = made
        return answer(request, whole(body, cast("ChatCompletion", reply.whole(done))))

    asked = await asked_under_key(request, chat, "chat")
    if asked is not None:
        begin = partial(opened, body=chat, kind="chat")
        return await answered_once(request, asked, lambda each, key: begin(each, key=key), shown)
    reply = await opened(request, chat, "chat")
    if not body.stream:
        async with abandoned_with_client(request, reply.texts):
            done = await ends(reply.texts)
        return shown(request, (reply, done))
    parts = frames(body, _chunks(reply))
    async with abandoned_with_client(request, reply.texts):
        first = await anext(parts)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(followed_by(first, parts), media_type="text/event-stream", headers=headers)


async def _chunks(reply: Reply) -> AsyncIterator[ChatCompletionChunk]:
    """Closing it ends the generation, and so does a failure."""
    try:
        async for chunk, _ in chunks((reply,), include_usage=True):
            yield cast("ChatCompletionChunk", chunk)
    finally:
        abandon(reply.texts)
