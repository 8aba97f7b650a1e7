"""The answer of an engine to a request: a growing list, read by any number of readers at their own speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from ..errors import SAEError
from .generation import Finished, Token


class GenerationStream(AsyncIterator[Token | Finished]):
    """Tokens as they are made, then the result. The engine appends; each reader keeps its own position.

    So a slow reader holds nobody up, and the list is at most as long as the request's `max_tokens`. As an iterator, it
    reads from the first token on, and raises a result that is an error. Belongs to the event loop, except
    `stop_requested`.
    """

    def __init__(self, on_end: Callable[[GenerationStream], object] = lambda _: None) -> None:
        """`on_end` is called once, when the generation has ended or its slot was freed."""
        self.tokens: list[Token] = []
        self.result: Finished | SAEError | None = None
        """None until the generation ends; it stays None if `aclose` comes first."""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing more comes."""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the first step: from then on `deadline_seconds` count anew."""
        self.on_token: Callable[[], object] | None = None
        """Called with each token."""
        self.waiters: set[asyncio.Future[None]] = set()
        """Futures of readers waiting for the next item."""
        self.stop_requested = False
        """The reader wants it to end; the engine does so after the current step. Read by any thread."""
        self._on_end = on_end
        self._read = 0

    def append(self, item: Token | Finished | SAEError | None) -> None:
        """For the engine; None: the first step begins. Items after the end are dropped."""
        if self.finished.done():
            return
        if item is None:
            self.begun.set_result(None)
            return
        if isinstance(item, Token):
            self.tokens.append(item)
            if self.on_token is not None:
                self.on_token()
            self.wake()
        else:
            self.result = item
            self._finish()

    def wake(self) -> None:
        """Wake all readers."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
            self._on_end(self)
            self.wake()

    async def has(self, position: int) -> bool:
        """Wait for this token; False if the generation ends before."""
        while position >= len(self.tokens) and not self.finished.done():
            await wait_for_news([self])
        return position < len(self.tokens)

    async def __anext__(self) -> Token | Finished:
        if await self.has(self._read):
            self._read += 1
            return self.tokens[self._read - 1]
        if self.result is None or self._read > len(self.tokens):
            raise StopAsyncIteration
        self._read += 1
        if isinstance(self.result, SAEError):
            raise self.result
        return self.result

    def stop(self) -> None:
        """Let the engine end the generation after the current step. Its `Finished` still comes, with reason `cancelled`
        unless it ended before. Returns at once."""
        self.stop_requested = True

    async def aclose(self) -> None:
        """Stop the generation; its slot is free immediately."""
        self.stop()
        self._finish()


async def wait_for_news(streams: Sequence[GenerationStream]) -> None:
    """Wait until one of them has something to read."""
    # One future per reader: cancelling a shared one would cancel it for all.
    waiter = asyncio.get_running_loop().create_future()
    for stream in streams:
        stream.waiters.add(waiter)
    try:
        await waiter
    finally:
        for stream in streams:
            stream.waiters.discard(waiter)
