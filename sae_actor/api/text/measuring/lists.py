"""Answers with long lists: encoded and sent in parts, so that no single call holds up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

from litestar import Response
from msgspec import Raw, json

from ...answers import answer, state_of
from ...disconnects import Streamed
from ...types import Answer, AnyRequest

AT_A_TIME = 64
"""Items that are encoded before it is looked whether anybody still waits."""
AT_ONCE = 2**20
"""Bytes of an answer that is sent whole."""
_MARK = b"\x01"
"""Stands for a list until the answer is sent. No JSON has it: in strings it is escaped."""


class LongLists:
    """The lists of one answer."""

    def __init__(self) -> None:
        self._lists: list[list[bytes]] = []

    async def add(self, items: list[Any]) -> Any:
        """Encode the items, which are taken out of the list; what stands for it in the answer's view. Ends early if it
        is cancelled."""
        parts = [b"["]
        while items:
            # Taken out, and so freed, some at a time too.
            some = items[:AT_A_TIME]
            del items[:AT_A_TIME]
            parts.append(await asyncio.to_thread(_joined, some))
            parts.append(b"," if items else b"]")
        self._lists.append(parts if len(parts) > 1 else [b"[]"])
        return Raw(b"%b%d%b" % (_MARK, len(self._lists) - 1, _MARK))

    def parts(self, view: Any) -> list[bytes]:
        """The view as JSON, with the lists in it."""
        pieces = json.encode(view).split(_MARK)  # text, number, text, number, …, text
        return [*chain.from_iterable(self._lists[int(p)] if n % 2 else [p] for n, p in enumerate(pieces))]

    def answer(self, request: AnyRequest, view: Any) -> Answer:
        """JSON with the ETag of the state that it was taken from; in parts if it is long."""
        parts = self.parts(view)
        if sum(map(len, parts)) <= AT_ONCE:
            return answer(request, Raw(b"".join(parts)))
        headers = {"etag": f'"{state_of(request).revision}"', "cache-control": "no-store"}
        return Streamed(_sent(parts), "application/json", headers)


async def _sent(parts: list[bytes]) -> AsyncIterator[bytes]:
    parts.reverse()
    while parts:
        yield parts.pop()


def _joined(items: list[Any]) -> bytes:
    return b",".join([json.encode(item) for item in items])


def sent_whole(request: AnyRequest, content: bytes, media_type: str) -> Answer:
    """Bytes with the ETag of the state that they were taken from."""
    headers = {"etag": f'"{state_of(request).revision}"', "cache-control": "no-store"}
    return Response(content=content, media_type=media_type, headers=headers)
