"""Lists of texts and chats, and readings of many prompts next to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, TypeAlias, TypeVar

from msgspec import Meta

from ....domain.rules.admission import model_to_ask
from ....errors import BadRequestError, ModelNotLoadedError
from ....ports import Activations
from ...answers import state_of
from ...context import context, principal
from ...disconnects import heard
from ...types import AnyRequest
from ..fields import MESSAGES
from ..messages import ChatMessage
from .inputs import Input, ReadInput

T = TypeVar("T")

SIDE_BY_SIDE = 16
"""Prompts of one request that are read at a time."""

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=100_000)]
Chat: TypeAlias = Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=1024)]
Texts: TypeAlias = Annotated[tuple[Text | Chat, ...], Meta(min_length=1, max_length=256)]


def settle_texts(value: Any, *names: str) -> None:
    """As `decoded` calls `settle`, for a body with `Texts` under these names."""
    for name in names if isinstance(value, dict) else ():
        texts = value.get(name)
        for at, text in enumerate(texts if isinstance(texts, list) else ()):
            if isinstance(text, list):
                MESSAGES.settle({"messages": text}, f"{name}[{at}].")


def inputs_of(texts: Texts) -> list[Input]:
    return [Input(prompt=each) if isinstance(each, str) else Input(messages=list(each)) for each in texts]


def plain(texts: Texts) -> list[str | list[dict[str, str]]]:
    """As they are digested, and as a template takes the chats."""
    return [each if isinstance(each, str) else [message.plain() for message in each] for each in texts]


async def side_by_side(request: AnyRequest, readings: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """Some of them at a time; their results, in order. All end with the first error, or when the client leaves."""
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with places:
            return await read()

    async with heard(request):
        tasks = [asyncio.create_task(one(each)) for each in readings]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
    raise AssertionError("the client left, which is raised")


def reading(request: AnyRequest, prompts: Sequence[ReadInput]) -> AbstractContextManager[None]:
    """Entered to read these prompts: they count for the caller's quota. Raises `QuotaExceededError`,
    `BadRequestError`."""
    tokens = sum(len(each.token_ids) for each in prompts)
    return context(request).generations.reading(principal(request), tokens)


def same_model(request: AnyRequest, position: int) -> None:
    """`ModelNotLoadedError` if the model whose tokens they are was replaced."""
    if model_to_ask(state_of(request))[1] != position:
        raise ModelNotLoadedError("the model was replaced while the texts were read; send the request again")


def refuse_bare(found: Sequence[Activations], name: str) -> None:
    """`BadRequestError` for a text of which nothing is counted."""
    for at, each in enumerate(found):
        if all(each.excluded):
            why = f"text {at} has no token that is counted: all of its {len(each.excluded)} are left out"
            raise BadRequestError(f"{name}[{at}]: {why}", param=name)
