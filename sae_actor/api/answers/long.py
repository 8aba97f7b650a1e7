"""Answers that may be long: made and encoded in a thread, and in no call that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..types import Answer, AnyRequest
from .lists import LongLists, in_parts


async def long_answer(request: AnyRequest, make: Callable[[], Any], *, whole: bool = False) -> Answer:
    """JSON with the ETag of its state, of the view that `make` makes. whole: as one body, which can be kept."""
    parts = await asyncio.to_thread(_encoded, make)
    return in_parts(request, parts, whole=whole)


def _encoded(make: Callable[[], Any]) -> list[bytes]:
    lists = LongLists()
    return lists.parts(lists.cut(make()))
