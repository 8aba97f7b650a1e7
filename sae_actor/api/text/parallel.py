"""Several generations of one request, read side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import TypeVar

from ...errors import SAEError
from ...generations import Completed, RunningGeneration

T = TypeVar("T")


async def merged(sources: Sequence[AsyncIterable[T]]) -> AsyncIterator[tuple[int, T]]:
    """What the sources give, as it comes, with the index of the source; over when all are.

    The first error is raised, and nothing is read any more, as when the reader leaves.
    """
    items: asyncio.Queue[tuple[int, list[T], Exception | None]] = asyncio.Queue()

    async def read(index: int) -> None:
        failure: Exception | None = None
        try:
            async for item in sources[index]:
                items.put_nowait((index, [item], None))
        except Exception as error:  # raised where the items are read
            failure = error
        items.put_nowait((index, [], failure))

    readers = [asyncio.create_task(read(index)) for index in range(len(sources))]
    try:
        running = len(sources)
        while running:
            index, found, failure = await items.get()
            if failure is not None:
                raise failure
            running -= not found
            for item in found:
                yield index, item
    finally:
        for reader in readers:
            reader.cancel()


async def ends(texts: Sequence[RunningGeneration]) -> list[Completed]:
    """Wait for all of them; the first error is raised and ends the others."""
    try:
        return await asyncio.gather(*(text.result() for text in texts))
    except SAEError:
        abandon(texts)
        raise


def abandon(texts: Sequence[RunningGeneration]) -> None:
    for text in texts:
        text.abandon()
