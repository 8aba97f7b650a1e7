"""A copy of a log that is being written, by SQLite's own backup: a few pages at a time, appends in between.

An append between two steps is in the copy too, since it uses the same connection (the lock allows no other): SQLite
copies each changed page again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from ..errors import DiskFullError, LogUnusableError
from ..ports import Head
from ..ports.durability import is_full
from .checkpoint import Checkpoint
from .connection import Connection
from .inspection import inspect, missing_log
from .lock import FolderLock, make_folder
from .new_database import FRESH, publish_database, remove_fresh

T = TypeVar("T")

STEP_PAGES = 64
"""Copied before appends have their turn: what 500 rows of the usual size take."""


async def copy_log(db: Connection, log_id: str, to: Path) -> Head:
    """Copy the log to a folder without one; verified before it gets its name. Returns the copy's head.

    Raises `LogUnusableError` if `to` has a log or cannot be written, `LogDamagedError` (`first_bad`) if the copy does
    not verify, `DiskFullError` without room for it; then there is no copy.
    """
    await asyncio.to_thread(make_folder, to)
    with contextlib.closing(await FolderLock.acquire(to, shared=False)):
        if not missing_log(to):
            raise LogUnusableError(f"{to} has a log already; a backup overwrites nothing")
        try:
            await _to_its_end(db.run(lambda connection: _copy(connection, to / FRESH, db.give_way)))
            return await _to_its_end(asyncio.to_thread(_publish, to, log_id))
        except (sqlite3.Error, OSError) as error:
            if is_full(error):
                raise DiskFullError("there is no room for a copy of the log", reason="no_space") from None
            raise LogUnusableError(f"{to} cannot be written: {error}") from None
        finally:
            await _to_its_end(asyncio.to_thread(remove_fresh, to))


def _copy(source: sqlite3.Connection, fresh: Path, give_way: Callable[[], None]) -> None:
    """On the connection's thread."""
    remove_fresh(fresh.parent)  # what a backup left that was killed here
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as target:
        # The file is read only after it is complete and synced.
        target.execute("PRAGMA journal_mode = OFF").fetchall()
        target.execute("PRAGMA synchronous = OFF").fetchall()
        source.backup(target, pages=STEP_PAGES, progress=lambda *_: give_way(), sleep=0)


def _publish(to: Path, log_id: str) -> Head:
    head = inspect(to, thorough=True, database=FRESH).head
    publish_database(to)
    Checkpoint.create(to, log_id, head).close()
    return head


async def _to_its_end(work: Awaitable[T]) -> T:
    """A caller that is cancelled waits for the end, so that nothing works on what is being cleaned up."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
