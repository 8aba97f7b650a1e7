"""Expensive work runs for a few clients at a time, and stops if the client disconnects."""

from __future__ import annotations

from collections.abc import Sequence

from ..domain.chats import Tokenization
from ..ports import Engine, Tokenized
from .context import context
from .disconnects import heard
from .types import AnyRequest


async def tokens_of(
    request: AnyRequest,
    engine: Engine,
    prompt: str | Sequence[dict[str, str]] | Sequence[int],
    how: Tokenization | None = None,
    *,
    any_length: bool = False,
) -> Tokenized:
    """The prompt as the model sees it. Raises the engine's errors, and `MailboxFullError` if too many
    prompts are waiting."""
    async with heard(request), context(request).prompts.taken():
        return await engine.tokenize(prompt, how, any_length=any_length)
