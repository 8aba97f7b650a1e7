"""An export of a log that is being written: a tar, made while it is sent, page by page.

The log is read twice: once to verify it and to know how long the tar becomes, once to send it. So nothing is held but
a page, on disk or in memory, and a reader that gets fewer bytes than were promised knows it. The head is the one of the
beginning: what is appended meanwhile is not in the export.
"""

from __future__ import annotations

import asyncio
import tarfile
import time
from collections.abc import AsyncGenerator
from typing import NamedTuple

from ...errors import LogDamagedError, LogError
from ...ports import EventLog, Head
from ..chain import Row, Walk, as_read
from .contents import EVENTS, companions, line_of

PAGE_BYTES = 512 * 1024
"""Of payloads, about: a page of large events is a short one."""
FIRST = 16
"""Rows of the first page, when nothing is known of their sizes."""
MOST = 500
"""Rows of a page."""


class Export(NamedTuple):
    """A tar that is ready to be sent."""

    name: str
    """Of the folder in it."""
    head: Head
    size: int
    """Bytes of the whole tar."""
    parts: AsyncGenerator[bytes, None]
    """Its bytes. Raises `LogError` if a payload was erased meanwhile: then the tar would be another one."""


async def export_running(log: EventLog) -> Export:
    """The log up to the head of now, verified; to be sent. Raises `LogDamagedError`."""
    head, walk, size = log.head, Walk(log.log_id), 0
    async for page in _pages(log, head):
        size += await asyncio.to_thread(_judged, walk, page)
        if walk.bad is not None:
            break
    is_short = walk.bad is None and walk.head != head
    if (fault := (walk.position + 1, "it is missing") if is_short else walk.fault()) is not None:
        raise LogDamagedError(f"event {fault[0]}: {fault[1]}", first_bad=fault[0])
    name = f"sae-actor-log-{log.log_id[:8]}-{head.position}"
    before = b""
    for each, content in companions(log.log_id, await log.created(), head).items():
        before += _header(f"{name}/{each}", len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    before += _header(f"{name}/{EVENTS}", size)
    after = bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    after += bytes(-(len(before) + size + len(after)) % tarfile.RECORDSIZE)
    return Export(name, head, len(before) + size + len(after), _sent(log, head, before, size, after))


def _judged(walk: Walk, page: list[Row]) -> int:
    """Bytes of the page's lines, if its rows verify."""
    return sum(len(line_of(row)) for row in page) if walk.feed(map(as_read, page)) else 0


async def _sent(log: EventLog, head: Head, before: bytes, size: int, after: bytes) -> AsyncGenerator[bytes, None]:
    yield before
    async for page in _pages(log, head):
        lines = await asyncio.to_thread(_lines, page)
        size -= len(lines)
        if size < 0:
            break
        yield lines
    if size != 0:
        raise LogError("a payload was erased while the log was exported; export it again")
    yield after


def _lines(page: list[Row]) -> bytes:
    return b"".join(map(line_of, page))


async def _pages(log: EventLog, head: Head) -> AsyncGenerator[list[Row], None]:
    """The rows up to the head; an append waits for the reading of one page at most."""
    after, rows = 0, FIRST
    while after < head.position:
        page = [Row(*row) for row in await log.rows(after, min(rows, head.position - after))]
        if not page:
            return
        yield page
        after += len(page)
        mean = sum(len(row.data or b"") for row in page) // len(page) + 1
        rows = max(1, min(MOST, rows * 4, PAGE_BYTES // mean))


def _header(path: str, size: int) -> bytes:
    member = tarfile.TarInfo(path)
    member.size, member.mtime = size, int(time.time())
    return member.tobuf(tarfile.PAX_FORMAT)
