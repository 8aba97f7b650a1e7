"""What takes long is done for a few clients at a time, and not for one that has left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ..domain.chats import Tokenization
from ..ports import Engine, Tokenized
from .context import context
from .streaming import heard
from .types import AnyRequest


async def tokens_of(
    request: AnyRequest,
    engine: Engine,
    prompt: str | Sequence[dict[str, str]] | Sequence[int],
    how: Tokenization | None = None,
) -> Tokenized:
    """The prompt as the model sees it. Raises what the engine refuses it with, and `MailboxFullError` where too many
    prompts wait already."""
    async with heard(request), context(request).prompts.taken():
        return await engine.tokenize(prompt, how)


@asynccontextmanager
async def looking(request: AnyRequest) -> AsyncIterator[None]:
    """Around what reads weights on the device, where texts are made. Raises `MailboxFullError`."""
    async with heard(request), context(request).looks.taken():
        yield


@asynccontextmanager
async def walking(request: AnyRequest) -> AsyncIterator[None]:
    """Around what reads much of the log for an answer: few at a time, and none for a client that is gone.

    Raises `NotReadyError` where too many wait for their turn already.
    """
    async with heard(request), context(request).walks.taken():
        yield
