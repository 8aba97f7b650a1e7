"""A copy of a log that is being written: page by page, so that an append waits for one page at the most."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import LogDamagedError, LogUnusableError
from ..ports import Head
from .building import NewDatabase
from .chain import Walk, as_read
from .checkpoint import Checkpoint
from .inspection import inspect, missing_log
from .lock import FolderLock, make_folder
from .reader import PAGE_ROWS, Reader

T = TypeVar("T")


async def copy_log(reader: Reader, log_id: str, head: Head, to: Path) -> Head:
    """Copy the events up to `head`, all of them durable, to a folder without a log; verified while it is read and
    once more as it lies on disk.

    Raises `LogUnusableError` where `to` has a log or cannot be written, `LogDamagedError` (`first_bad`) where the
    log itself does not verify; then there is no copy.
    """
    await asyncio.to_thread(make_folder, to)
    lock = await FolderLock.acquire(to, shared=False)
    try:
        if missing_log(to):
            await _copy(reader, log_id, head, to)
        else:
            raise LogUnusableError(f"{to} has a log already: a backup overwrites nothing")
        return (await _to_its_end(lambda: inspect(to, thorough=True))).head
    except (sqlite3.Error, OSError) as error:
        raise LogUnusableError(f"{to} cannot be written: {error}") from None
    finally:
        lock.release()


async def _copy(reader: Reader, log_id: str, head: Head, to: Path) -> None:
    walk = Walk(log_id)
    created = await reader.created()
    database = await _to_its_end(lambda: NewDatabase(to, log_id, created))
    try:
        while walk.position < head.position:
            rows = await reader.rows(walk.position, min(PAGE_ROWS, head.position - walk.position))
            if not rows or not walk.feed(map(as_read, rows)):
                what = walk.bad or "missing"
                raise LogDamagedError(f"event {walk.position + 1}: {what}", first_bad=walk.position + 1)
            await _to_its_end(lambda page=rows: database.add(page))  # type: ignore[misc]
        await _to_its_end(database.publish)
        await _to_its_end(lambda: Checkpoint.create(to, log_id, head).close())
    finally:
        await _to_its_end(database.discard)


async def _to_its_end(work: Callable[[], T]) -> T:
    """Run in a thread; a caller that is cancelled waits for its end, so that nothing works on a closed database."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
