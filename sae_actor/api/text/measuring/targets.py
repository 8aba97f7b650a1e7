"""Tokens that a request names, by their text or their id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta

from ....domain.chats import Tokenization
from ....errors import BadRequestError
from ...context import context, device
from ...disconnects import heard
from ...types import AnyRequest

MOST_TARGETS = 128
NamedToken: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)] | Annotated[str, Meta(min_length=1, max_length=256)]
NamedTokens: TypeAlias = Annotated[tuple[NamedToken, ...], Meta(min_length=1, max_length=MOST_TARGETS)]
_BARE = Tokenization(add_special_tokens=False)


async def token_ids_of(request: AnyRequest, named: Sequence[NamedToken], name: str) -> tuple[int, ...]:
    """The id of each. `BadRequestError`, with `token_ids`, for a text that is not one token; without, for an unknown
    id. `name`: of the field."""
    found: list[int] = []
    async with heard(request):
        for at, each in enumerate(named):
            async with context(request).prompts.taken():
                try:
                    read = await device(request).tokenize(each if isinstance(each, str) else [each], _BARE)
                except BadRequestError as error:
                    raise BadRequestError(f"{name}[{at}]: {error.detail}", param=f"{name}[{at}]") from None
            if len(read.token_ids) != 1:
                raise BadRequestError(
                    f"{name}[{at}]: {each!r:.80} is not one token, but {len(read.token_ids)}",
                    param=f"{name}[{at}]",
                    token_ids=list(read.token_ids[:64]),
                )
            found += read.token_ids
    return tuple(found)
