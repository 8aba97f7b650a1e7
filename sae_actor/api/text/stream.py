"""Generations as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from ...errors import SAEError
from ...generations import Completed, RunningGeneration, abandon, interleaved
from ...limits import AT_A_TIME
from ...subscriptions import sse
from ..answers import answer
from ..answers.lists import encoded_lists
from ..answers.long import long_answer
from ..disconnects import event_stream, heard, on_disconnect
from ..problems import openai_view
from ..types import Answer, AnyRequest
from .answers import Usage
from .replies import Choice, Chunk, Part, Reply
from .requests import TextBody

T = TypeVar("T")


class Frames(Protocol):
    """The frames of an answer that is streamed."""

    def of(self, chunk: Chunk, index: int, /) -> Iterable[bytes]:
        """Those that a chunk brings; index: of its reply."""

    def end(self) -> Iterable[bytes]:
        """The last ones, after all chunks."""

    def failed(self, error: SAEError) -> bytes:
        """In place of the rest."""


class ChunkFrames:
    """A frame for each chunk, and `[DONE]`."""

    def __init__(self, part: Callable[[Chunk, int], Struct] = lambda chunk, _: chunk) -> None:
        """part: what a chunk is sent as."""
        self._part = part

    def of(self, chunk: Chunk, index: int) -> Iterable[bytes]:
        yield sse(None, self._part(chunk, index))

    def end(self) -> Iterable[bytes]:
        yield b"data: [DONE]\n\n"

    def failed(self, error: SAEError) -> bytes:
        return sse(None, openai_view(error))


async def made_answer(
    request: AnyRequest, make: Callable[[], Struct], replies: Sequence[Reply], *, whole: bool = False
) -> Answer:
    """The whole answer that `make` makes of the replies; in a thread if it may be long. whole: as one body."""
    choices = [choice for reply in replies for choice in reply.choices]
    if len(choices) <= AT_A_TIME and not any(choice.is_long for choice in choices):
        return answer(request, make())
    async with heard(request):
        return await long_answer(request, make, whole=whole)
    raise AssertionError("the client left, which is raised")


async def streamed(request: AnyRequest, body: TextBody, replies: Sequence[Reply], frames: Frames) -> Answer:
    """The answer that carries the chunks of all replies as they come. The first is there before the status line, so
    that an early failure gets its own status."""
    numbered = chunks(replies, include_usage=body.includes_usage, counts_usage=body.counts_usage)
    texts = [text for reply in replies for text in reply.texts]
    events = _events(numbered, texts, frames)
    async with on_disconnect(request, partial(abandon, texts)):
        await anext(events)
    return event_stream(events)


async def _events(
    numbered: AsyncIterator[tuple[Chunk, int]], texts: Sequence[RunningGeneration], frames: Frames
) -> AsyncIterator[bytes]:
    """Nothing, as soon as there is a first chunk; then all frames.

    Closing it ends the generations, and so does the first that fails.
    """
    started = False
    try:
        async for chunk, index in numbered:
            if not started:
                started = True
                yield b""
            made = frames.of(chunk, index)
            for frame in await asyncio.to_thread(list, made) if _is_long(chunk) else made:
                yield frame
        for frame in frames.end():
            yield frame
    except SAEError as error:
        if not started:
            raise
        yield frames.failed(error)
    finally:
        abandon(texts)


async def chunks(
    replies: Sequence[Reply], *, include_usage: bool, counts_usage: bool = False
) -> AsyncIterator[tuple[Chunk, int]]:
    """Each with the index of its reply. Where a reply has several choices, the last chunk of each has its extension."""
    choices = [(index, choice) for index, reply in enumerate(replies) for choice in reply.choices]
    made = [0] * len(replies)

    def usage_of(index: int) -> Usage | UnsetType:
        return replies[index].usage_so_far(made[index]) if counts_usage else UNSET

    def chunk_of(index: int, *parts: Part) -> tuple[Chunk, int]:
        return replies[index].chunk(*parts, usage=usage_of(index)), index

    for index, choice in choices:
        if choice.echo and not choice.echoes_scores:
            yield chunk_of(index, choice.echoed())
    unheard, done = {*range(len(choices))}, dict[int, Completed]()
    async for at, item in interleaved([choice.text for _, choice in choices]):
        index, choice = choices[at]
        reply, first = replies[index], at in unheard
        unheard.discard(at)
        if first and choice.echoes_scores:
            prompt = item.finished.prompt if isinstance(item, Completed) else item.prompt
            yield chunk_of(index, await _made(choice, partial(choice.echoed, prompt)))
        if not isinstance(item, Completed):
            made[index] += 1
            if choice.tells(item) or first:
                piece = partial(reply.piece, choice, item, usage_of(index), first=first)
                # The first has the prompt's positions.
                yield (await _made(choice, piece) if first and choice.details else piece()), index
            continue
        done[at] = item
        held, _ = chunk_of(index, await _made(choice, partial(_last, reply, choice, item, first=first)))
        ended = [done[each] for each, (of, _) in enumerate(choices) if of == index and each in done]
        if include_usage or len(ended) < len(reply.choices):
            yield held, index
        if len(ended) == len(reply.choices):
            if include_usage:
                held = reply.chunk(usage=reply.usage(ended))
            extension = partial(reply.choices[0].extension, ended[0], streamed=True)
            yield replace(held, sae=await _made(reply.choices[0], extension)), index


def _last(reply: Reply, choice: Choice, done: Completed, *, first: bool) -> Part:
    return choice.last(done, reply.own(choice, done, streamed=True), first=first)


async def _made(choice: Choice, make: Callable[[], T]) -> T:
    """Of a long choice in a thread, with its long lists encoded."""
    return await asyncio.to_thread(lambda: encoded_lists(make())) if choice.is_long else make()


def _is_long(chunk: Chunk) -> bool:
    """It brings many activations, encoded already."""
    told: list[Any] = [chunk.sae, *(part.sae for part in chunk.choices)]
    lists = [getattr(sae, name, None) for sae in told for name in ("features", "features_by_sae", "positions")]
    return any(isinstance(each, Raw | dict) for each in lists)
