"""The reader's side of a generation: what the device thread delivers, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from ..errors import SAEError
from ..ports import Finished, Token
from .decoding.generation import Generation, Item


class GenerationStream(AsyncIterator[Token | Finished]):
    """Iterate for tokens and, last, one `Finished`. Closing it frees the generation's slot."""

    def __init__(self, on_end: Callable[[GenerationStream], None]) -> None:
        """`on_end` is called once on the event loop, when the generation has ended or its reader has left."""
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._on_end = on_end
        self._read_all = False
        self.begun: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.text: Generation | None = None

    @property
    def uses(self) -> frozenset[int]:
        """attach_position of every SAE of the intervention."""
        return frozenset() if self.text is None else self.text.uses

    def deliver(self, item: Item) -> None:
        """Called on the device thread."""
        # A loop that is closed has no reader.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, item)

    def begin(self) -> None:
        """Called on the device thread, with the first step."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def _receive(self, item: Item) -> None:
        self._items.put_nowait(item)
        if not isinstance(item, Token):
            self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            self._on_end(self)

    async def __anext__(self) -> Token | Finished:
        if self._read_all:
            raise StopAsyncIteration
        item = await self._items.get()
        self._read_all = not isinstance(item, Token)
        if isinstance(item, SAEError):
            raise item
        return item

    def stop(self) -> None:
        """See the port."""
        if self.text is not None:
            self.text.cancelled = True

    async def aclose(self) -> None:
        """Stop the generation after its step; its slot is free immediately."""
        self._read_all = True
        if self.text is not None:
            self.text.cancelled = True
        self._end()
