"""Answers with long lists: encoded and sent in parts, so that no single call holds up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

from litestar import Response
from msgspec import Raw, Struct, json
from msgspec.structs import replace

from ..disconnects import Streamed
from ..types import Answer, AnyRequest
from .short import state_of

T = TypeVar("T")

AT_A_TIME = 64
"""Items that are encoded before it is looked whether anybody still waits."""
AT_ONCE = 2**20
"""Bytes of an answer that is sent whole."""
PART_BYTES = 16 * 1024
"""Of a part that is sent, at least."""
JSON = "application/json"
_MARK = b"\x01"
"""A placeholder for a list until the answer is sent. JSON cannot contain it: strings escape it."""


def _itself(item: T) -> T:
    return item


class LongLists:
    """The lists of one answer."""

    def __init__(self) -> None:
        self._lists: list[list[bytes]] = []

    async def add(self, items: list[T], made: Callable[[T], Any] = _itself) -> Any:
        """Apply `made` to the items and encode the results, in a thread; return the placeholder for the answer's view.
        The list of items is emptied on the way. A cancelled call ends early."""
        parts = [b"["]
        while items:
            # Taken out, and so freed, some at a time too.
            some = items[:AT_A_TIME]
            del items[:AT_A_TIME]
            parts.append(await asyncio.to_thread(_joined, some, made))
            parts.append(b"," if items else b"]")
        return self._stands_for(parts)

    def cut(self, value: Any, *, through: int = 1) -> Any:
        """The same with every long tuple in it encoded. It is looked for in structs and dicts, and in that many levels
        of other tuples. Not on the event loop."""
        if isinstance(value, Struct):
            fields = {name: getattr(value, name) for name in value.__struct_fields__}
            return replace(value, **{name: self.cut(each, through=through) for name, each in fields.items()})
        if isinstance(value, dict):
            return {key: self.cut(each, through=through) for key, each in value.items()}
        if not isinstance(value, tuple):
            return value
        if through:
            value = tuple(self.cut(each, through=through - 1) for each in value)
        if len(value) <= AT_A_TIME:
            return value
        parts = [b"["]
        for at in range(0, len(value), AT_A_TIME):
            parts += [*self._spread(_joined(value[at : at + AT_A_TIME], _itself)), b","]
        return self._stands_for([*parts[:-1], b"]"])

    def _stands_for(self, parts: list[bytes]) -> Any:
        self._lists.append(parts if len(parts) > 1 else [b"[]"])
        return Raw(b"%b%d%b" % (_MARK, len(self._lists) - 1, _MARK))

    def parts(self, view: Any) -> list[bytes]:
        """The view as JSON, with the lists in it."""
        return [*self._spread(json.encode(view))]

    def _spread(self, written: bytes) -> Iterator[bytes]:
        for n, piece in enumerate(written.split(_MARK)):  # text, number, text, number, …, text
            if n % 2:
                yield from self._lists[int(piece)]
            else:
                yield piece

    def answer(self, request: AnyRequest, view: Any, *, whole: bool = False) -> Answer:
        """JSON with the ETag of the state that it was taken from; in parts if it is long, unless it is to be whole."""
        return in_parts(request, self.parts(view), whole=whole)


class _EncodedLists(LongLists):
    """In place, for what is part of something else."""

    def _stands_for(self, parts: list[bytes]) -> Any:
        return Raw(b"".join(parts))


def encoded_lists(value: T) -> T:
    """The same with every long tuple in it encoded. Not on the event loop."""
    made: T = _EncodedLists().cut(value)
    return made


def in_parts(request: AnyRequest, parts: list[bytes], *, whole: bool = False) -> Answer:
    """JSON as `answer` answers with it. whole: as one body, which can be kept."""
    if whole or sum(map(len, parts)) <= AT_ONCE:
        return sent_whole(request, b"".join(parts), JSON)
    headers = {"etag": f'"{state_of(request).revision}"', "cache-control": "no-store"}
    return Streamed(_sent(parts), JSON, headers)


async def _sent(parts: list[bytes]) -> AsyncIterator[bytes]:
    parts.reverse()
    held = bytearray()
    while parts:
        held += parts.pop()
        if len(held) >= PART_BYTES:
            yield bytes(held)
            held.clear()
            await asyncio.sleep(0)  # the next is there already
    yield bytes(held)


def _joined(items: Iterable[T], made: Callable[[T], Any]) -> bytes:
    return b",".join([json.encode(made(item)) for item in items])


def sent_whole(request: AnyRequest, content: bytes, media_type: str) -> Answer:
    """Bytes with the ETag of the state that they were taken from."""
    headers = {"etag": f'"{state_of(request).revision}"', "cache-control": "no-store"}
    return Response(content=content, media_type=media_type, headers=headers)
