"""Generations as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec import UNSET, Struct
from msgspec.structs import replace

from ...errors import SAEError
from ...generations import Completed, RunningGeneration, abandon, interleaved
from ...subscriptions.frames import line_of
from ..problems import openai_view
from ..streaming import Streamed, left
from ..types import Answer, AnyRequest
from .replies import Chunk, Part, Reply


async def streamed(
    request: AnyRequest,
    replies: Sequence[Reply],
    *,
    include_usage: bool,
    counts_usage: bool,
    part: Callable[[Chunk, int], Struct] = lambda chunk, _: chunk,
) -> Answer:
    """The answer that carries the chunks of all replies as they come, and `[DONE]`.

    counts_usage: each chunk has the usage so far. part: what a chunk is sent as; it is given the index of its reply
    too. The first is there before the status line, so that an early failure gets its own status.
    """
    told = chunks(replies, include_usage=include_usage, counts_usage=counts_usage)
    texts = [text for reply in replies for text in reply.texts]
    events = _events((part(chunk, index) async for chunk, index in told), texts)
    async with abandoned_with_client(request, texts):
        await anext(events)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(events, media_type="text/event-stream", headers=headers)


async def _events(parts: AsyncIterator[Struct], texts: Sequence[RunningGeneration]) -> AsyncIterator[bytes]:
    """Nothing, as soon as there is a first event; then all of them.

    Closing it ends the generations, and so does the first that fails.
    """
    started = False
    try:
        async for part in parts:
            if not started:
                started = True
                yield b""
            yield _event(part)
    except SAEError as error:
        if not started:
            raise
        yield _event(openai_view(error))
        return
    finally:
        abandon(texts)
    yield b"data: [DONE]\n\n"


async def chunks(
    replies: Sequence[Reply], *, include_usage: bool, counts_usage: bool = False
) -> AsyncIterator[tuple[Chunk, int]]:
    """Each with the index of its reply. Where a reply has several choices, the last chunk of each has its extension."""
    choices = [(index, choice) for index, reply in enumerate(replies) for choice in reply.choices]
    made = [0] * len(replies)

    def told(index: int, *parts: Part) -> tuple[Chunk, int]:
        reply = replies[index]
        return reply.chunk(*parts, usage=reply.usage_so_far(made[index]) if counts_usage else UNSET), index

    for index, choice in choices:
        if choice.echo and not choice.echoes_scores:
            yield told(index, choice.echoed())
    unheard, done = {*range(len(choices))}, dict[int, Completed]()
    async for at, item in interleaved([choice.text for _, choice in choices]):
        index, choice = choices[at]
        reply, first = replies[index], at in unheard
        unheard.discard(at)
        if first and choice.echoes_scores:
            yield told(index, choice.echoed(item.finished.prompt if isinstance(item, Completed) else item.prompt))
        if not isinstance(item, Completed):
            made[index] += 1
            if choice.tells(item) or first:
                yield told(index, choice.part((item,), first=first))
            continue
        done[at] = item
        held, _ = told(index, choice.last(item, reply.own(choice, item), first=first))
        ended = [done[each] for each, (of, _) in enumerate(choices) if of == index and each in done]
        if include_usage or len(ended) < len(reply.choices):
            yield held, index
        if len(ended) == len(reply.choices):
            if include_usage:
                held = reply.chunk(usage=reply.usage(ended))
            yield replace(held, sae=reply.choices[0].extension(ended[0])), index


def _event(value: object) -> bytes:
    return b"data: " + line_of(value) + b"\n\n"


@asynccontextmanager
async def abandoned_with_client(request: AnyRequest, texts: Sequence[RunningGeneration]) -> AsyncIterator[None]:
    """Stop the generations when the client disconnects."""

    async def watch() -> None:
        await left(request)
        abandon(texts)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
