"""Generations as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ...errors import SAEError
from ...generations import Completed, RunningGeneration, abandon, interleaved
from ...ports import Token
from ..problems import openai_view
from ..streaming import Streamed, followed_by, left
from ..types import Answer, AnyRequest
from .replies import Choice, Chunk, Reply


class Chunks:
    """The chunks of one reply, as its generations go on."""

    def __init__(self, reply: Reply, *, include_usage: bool) -> None:
        self._reply = reply
        self._include_usage = include_usage
        self._unheard = {choice.index for choice in reply.choices}
        self._done: dict[int, Completed] = {}

    def of(self, choice: Choice, item: Token | Completed) -> Iterator[Chunk]:
        """The extension of each choice is in its last chunk, where there are several."""
        reply, first = self._reply, choice.index in self._unheard
        self._unheard.discard(choice.index)
        if not isinstance(item, Completed):
            if choice.tells(item) or first:
                yield reply.chunk(choice.part((item,), first=first))
            return
        self._done[choice.index] = item
        held = reply.chunk(choice.last(item, reply.own(choice, item), first=first))
        if len(self._done) < len(reply.choices):
            yield held
            return
        ended = [self._done[each.index] for each in reply.choices]
        if self._include_usage:
            yield held
            held = reply.chunk(usage=reply.usage(ended))
        yield replace(held, sae=reply.choices[0].extension(ended[0]))


async def streamed(
    request: AnyRequest,
    replies: Sequence[Reply],
    *,
    include_usage: bool,
    part: Callable[[Chunk, int], Struct] = lambda chunk, _: chunk,
) -> Answer:
    """The answer that carries the chunks of all replies as they come, and `[DONE]`.

    part: what a chunk is sent as; it is given the index of its reply too. The first comes before the status line, so
    that an early failure gets its own status.
    """
    events = _events(replies, include_usage, part)
    async with abandoned_with_client(request, [text for reply in replies for text in reply.texts]):
        first = await anext(events)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(followed_by(first, events), media_type="text/event-stream", headers=headers)


async def _events(
    replies: Sequence[Reply], include_usage: bool, part: Callable[[Chunk, int], Struct]
) -> AsyncIterator[bytes]:
    """Closing it ends the generations, and so does the first that fails."""
    choices = [(index, choice) for index, reply in enumerate(replies) for choice in reply.choices]
    texts = [choice.text for _, choice in choices]
    chunks = [Chunks(reply, include_usage=include_usage) for reply in replies]
    started = False
    try:
        for index, choice in choices:
            if choice.echo:
                started = True
                yield _event(part(replies[index].chunk(choice.part(text=choice.echo)), index))
        async for at, item in interleaved(texts):
            index, choice = choices[at]
            for chunk in chunks[index].of(choice, item):
                started = True
                yield _event(part(chunk, index))
    except SAEError as error:
        if not started:
            raise
        yield _event(openai_view(error))
        return
    finally:
        abandon(texts)
    yield b"data: [DONE]\n\n"


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
