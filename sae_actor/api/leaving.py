"""Clients that hang up before they are answered: what was done for them alone ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CancelScope

from ..errors import BadRequestError
from .context import context
from .routes import AnyRequest


async def left(request: AnyRequest) -> None:
    """Wait until the client of a request whose body has been read, or that has none, hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def heard(request: AnyRequest) -> AsyncIterator[None]:
    """Around what is done for an answer alone: it is cancelled when the client hangs up."""

    async def watch() -> None:
        await left(request)
        scope.cancel()

    with CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
    if scope.cancelled_caught:
        raise BadRequestError("the client has left")  # heard by nobody, but counted


@asynccontextmanager
async def walking(request: AnyRequest) -> AsyncIterator[None]:
    """Around what reads much of the log for an answer: few at a time, and none for a client that is gone.

    Raises `NotReadyError` where too many wait for their turn already.
    """
    async with heard(request), context(request).walks.taken():
        yield
