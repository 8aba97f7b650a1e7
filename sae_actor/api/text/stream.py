"""Generations as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec import UNSET, Struct
from msgspec.structs import replace

from ...errors import SAEError
from ...generations import Completed, RunningGeneration
from ..problems import openai_view
from ..streaming import Streamed, followed_by, left, line_of
from ..types import Answer, AnyRequest
from .parallel import abandon, merged
from .replies import Chunk, Part, Reply


async def chunks(reply: Reply, *, include_usage: bool, counts_usage: bool = False) -> AsyncIterator[Chunk]:
    """Chunks of all choices as they come; the extension of each is in its last one, where there are several.
    counts_usage: each has the usage so far.

    Closing it ends the generations, and so does the first that fails: its error is raised.
    """
    unheard = {choice.index for choice in reply.choices}
    done: dict[int, Completed] = {}
    made = 0

    def told(*parts: Part) -> Chunk:
        return reply.chunk(*parts, usage=reply.usage_so_far(made) if counts_usage else UNSET)

    held = told()
    try:
        for choice in reply.choices:
            if choice.echo and not choice.echoes_scores:
                yield told(choice.echoed())
        async for index, item in merged([choice.text for choice in reply.choices]):
            choice, first = reply.choices[index], index in unheard
            unheard.discard(index)
            if first and choice.echoes_scores:
                yield told(choice.echoed(item.finished.prompt if isinstance(item, Completed) else item.prompt))
            made += not isinstance(item, Completed)
            if isinstance(item, Completed):
                done[index] = item
                held = told(reply.last(choice, item, first=first))
                if include_usage or len(done) < len(reply.choices):
                    yield held
            elif choice.tells(item) or first:
                yield told(choice.part((item,), first=first))
    finally:
        abandon([choice.text for choice in reply.choices])
    ended = [done[choice.index] for choice in reply.choices]
    if include_usage:
        held = reply.chunk(usage=reply.usage(ended))
    yield replace(held, sae=reply.choices[0].extension(ended[0]))


async def streamed(request: AnyRequest, parts: AsyncIterator[Struct], texts: Sequence[RunningGeneration]) -> Answer:
    """The answer that carries `parts`, and `[DONE]`.

    The first comes before the status line, so that an early failure gets its own status.
    """
    events = _events(parts)
    async with abandoned_with_client(request, texts):
        first = await anext(events)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(followed_by(first, events), media_type="text/event-stream", headers=headers)


async def _events(parts: AsyncIterator[Struct]) -> AsyncIterator[bytes]:
    started = False
    try:
        async for part in parts:
            yield _event(part)
            started = True
    except SAEError as error:
        if not started:
            raise
        yield _event(openai_view(error))
        return
    yield b"data: [DONE]\n\n"


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
