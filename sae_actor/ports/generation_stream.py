"""What an engine makes of a request: a list that grows, read by any number of readers at their own speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from ..errors import SAEError
from .generation import Finished, Token


class GenerationStream(AsyncIterator[Token | Finished]):
    """Tokens as they are made, then how they ended. The engine appends; each reader keeps its own position.

    So nobody has to keep up, and the list is no longer than the request's `max_tokens`. As an iterator, it is a reader
    from the first token on, and raises an end that is an error. Belongs to the event loop, except `stopped`.
    """

    def __init__(self, on_end: Callable[[GenerationStream], object] = lambda _: None) -> None:
        """`on_end` is called once, when the generation has ended or its slot was freed."""
        self.tokens: list[Token] = []
        self.end: Finished | SAEError | None = None
        """None also after `aclose`, if the generation had not ended."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing more comes."""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with its first step: from then on `deadline_seconds` count anew."""
        self.waiting: set[asyncio.Future[None]] = set()
        """Of readers that have read everything."""
        self.stopped = False
        """The engine ends the generation after its step; read by any thread."""
        self._on_end = on_end
        self._read = 0

    def append(self, item: Token | Finished | SAEError | None) -> None:
        """For the engine; None: its first step. What comes after the end is dropped."""
        if self.ended.done():
            return
        if item is None:
            self.begun.set_result(None)
            return
        if isinstance(item, Token):
            self.tokens.append(item)
            self.wake()
        else:
            self.end = item
            self._end()

    def wake(self) -> None:
        """Wake all readers."""
        for news in self.waiting:
            if not news.done():
                news.set_result(None)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            self._on_end(self)
            self.wake()

    async def has(self, position: int) -> bool:
        """Wait for this token; False if the generation ends before."""
        while position >= len(self.tokens) and not self.ended.done():
            await news_of([self])
        return position < len(self.tokens)

    async def __anext__(self) -> Token | Finished:
        if await self.has(self._read):
            self._read += 1
            return self.tokens[self._read - 1]
        if self.end is None or self._read > len(self.tokens):
            raise StopAsyncIteration
        self._read += 1
        if isinstance(self.end, SAEError):
            raise self.end
        return self.end

    def stop(self) -> None:
        """End the generation after its step; its `Finished` still comes, with reason `cancelled` where it was not over
        before. Returns at once."""
        self.stopped = True

    async def aclose(self) -> None:
        """Stop the generation; its slot is free immediately."""
        self.stop()
        self._end()


async def news_of(streams: Sequence[GenerationStream]) -> None:
    """Wait until there is something to read in one of them."""
    # One future for each reader: who is cancelled while waiting for a shared one would cancel it for all.
    news = asyncio.get_running_loop().create_future()
    for stream in streams:
        stream.waiting.add(news)
    try:
        await news
    finally:
        for stream in streams:
            stream.waiting.discard(news)
