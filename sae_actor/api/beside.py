"""Several texts of one request, read side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from ..actor import Done, RunningText
from ..errors import SAEError
from ..ports import Token


async def merged(texts: Sequence[RunningText]) -> AsyncIterator[tuple[int, Token | Done]]:
    """What the texts make, as it comes, with the index of the text; over when all have ended.

    The first error is raised and ends them all, as does a reader who leaves.
    """
    items: asyncio.Queue[tuple[int, Token | Done | SAEError]] = asyncio.Queue()

    async def read(index: int) -> None:
        try:
            async for item in texts[index]:
                items.put_nowait((index, item))
        except SAEError as error:
            items.put_nowait((index, error))

    readers = [asyncio.create_task(read(index)) for index in range(len(texts))]
    try:
        running = len(texts)
        while running:
            index, item = await items.get()
            if isinstance(item, SAEError):
                raise item
            running -= isinstance(item, Done)
            yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        abandon(texts)


async def ends(texts: Sequence[RunningText]) -> list[Done]:
    """Wait for all of them; the first error is raised and ends the others."""
    try:
        return await asyncio.gather(*(text.result() for text in texts))
    except SAEError:
        abandon(texts)
        raise


def abandon(texts: Sequence[RunningText]) -> None:
    for text in texts:
        text.abandon()
