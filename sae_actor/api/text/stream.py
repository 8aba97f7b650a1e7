"""Generations as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ...errors import SAEError
from ...generations import Completed, RunningGeneration
from ..problems import openai_view
from ..streaming import Streamed, left
from ..types import Answer, AnyRequest
from .parallel import abandon, merged
from .replies import Reply


async def chunks(reply: Reply, *, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
    """Chunks of all choices as they come; if there are several, the extension of each is in its last one.

    Closing it ends the generations, and so does the first that fails: its error is raised.
    """

    def shown(choice: dict[str, Any]) -> dict[str, Any]:
        return {**reply.envelope(chunk=True), "choices": [choice]}

    unheard = {choice.index for choice in reply.choices}
    done: dict[int, Completed] = {}
    held: dict[str, Any] = {}
    try:
        for choice in reply.choices:
            if choice.echo:
                yield shown(choice.part(text=choice.echo))
        async for index, item in merged([choice.text for choice in reply.choices]):
            choice, first = reply.choices[index], index in unheard
            unheard.discard(index)
            if isinstance(item, Completed):
                done[index] = item
                held = shown(reply.last(choice, item, first=first))
                if include_usage or len(done) < len(reply.choices):
                    yield held
            elif choice.tells(item) or first:
                yield shown(choice.part((item,), first=first))
    finally:
        abandon([choice.text for choice in reply.choices])
    ended = [done[choice.index] for choice in reply.choices]
    if include_usage:
        held = {**reply.envelope(chunk=True), "choices": [], "usage": reply.usage(ended)}
    yield {**held, "sae": reply.choices[0].extension(ended[0])}


async def streamed(
    request: AnyRequest, parts: AsyncIterator[dict[str, Any]], texts: Sequence[RunningGeneration]
) -> Answer:
    """The answer that carries `parts`, and `[DONE]`.

    The first comes before the status line, so that an early failure gets its own status.
    """
    events = _events(parts)
    async with abandoned_with_client(request, texts):
        first = await anext(events)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(_after(first, events), media_type="text/event-stream", headers=headers)


async def _events(parts: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
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


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for each in rest:
        yield each


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
