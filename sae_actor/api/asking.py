"""What the engine is asked for one client, before or beside texts: few at a time, and nothing for who has left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ..domain.refs import Tokenization
from ..ports import Engine, Tokenized
from .context import context
from .leaving import heard
from .routes import AnyRequest


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
