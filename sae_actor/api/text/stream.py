"""Generations as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ...errors import SAEError
from ...generations import Completed, RunningGeneration, abandon, interleaved
from ..problems import openai_view
from ..streaming import Streamed, left
from ..types import Answer, AnyRequest
from .replies import Chunk, Reply


async def streamed(
    request: AnyRequest,
    replies: Sequence[Reply],
    *,
    include_usage: bool,
    part: Callable[[Chunk, int], Struct] = lambda chunk, _: chunk,
) -> Answer:
    """The answer that carries the chunks of all replies as they come, and `[DONE]`.

    part: what a chunk is sent as; it is given the index of its reply too. The first is there before the status line, so
    that an early failure gets its own status.
    """
    events = _events(replies, include_usage, part)
    async with abandoned_with_client(request, [text for reply in replies for text in reply.texts]):
        await anext(events)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(events, media_type="text/event-stream", headers=headers)


async def _events(
    replies: Sequence[Reply], include_usage: bool, part: Callable[[Chunk, int], Struct]
) -> AsyncIterator[bytes]:
    """Nothing, as soon as there is a first event; then all of them.

    Closing it ends the generations, and so does the first that fails.
    """
    started = False
    try:
        async for chunk, index in _chunks(replies, include_usage):
            if not started:
                started = True
                yield b""
            yield _event(part(chunk, index))
    except SAEError as error:
        if not started:
            raise
        yield _event(openai_view(error))
        return
    finally:
        abandon([text for reply in replies for text in reply.texts])
    yield b"data: [DONE]\n\n"


async def _chunks(replies: Sequence[Reply], include_usage: bool) -> AsyncIterator[tuple[Chunk, int]]:
    """Each with the index of its reply. Where a reply has several choices, the last chunk of each has its extension."""
    choices = [(index, choice) for index, reply in enumerate(replies) for choice in reply.choices]
    for index, choice in choices:
        if choice.echo:
            yield replies[index].chunk(choice.part(text=choice.echo)), index
    unheard, done = {*range(len(choices))}, dict[int, Completed]()
    async for at, item in interleaved([choice.text for _, choice in choices]):
        index, choice = choices[at]
        reply, first = replies[index], at in unheard
        unheard.discard(at)
        if not isinstance(item, Completed):
            if choice.tells(item) or first:
                yield reply.chunk(choice.part((item,), first=first)), index
            continue
        done[at] = item
        held = reply.chunk(choice.last(item, reply.own(choice, item), first=first))
        ended = [done[each] for each, (of, _) in enumerate(choices) if of == index and each in done]
        if include_usage or len(ended) < len(reply.choices):
            yield held, index
        if len(ended) == len(reply.choices):
            if include_usage:
                held = reply.chunk(usage=reply.usage(ended))
            yield replace(held, sae=reply.choices[0].extension(ended[0])), index


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


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
