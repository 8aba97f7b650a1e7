"""Copies of databases that somebody may be writing: by SQLite, never by their bytes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..errors import LogError

STEP_PAGES = 64


@asynccontextmanager
async def copied(path: Path, to: Path) -> AsyncIterator[Path]:
    """A copy as it is now, for a while. In WAL mode its writers do not wait for it. Raises `LogError`."""
    try:
        await asyncio.to_thread(_copy, path, to)
        yield to
    except sqlite3.Error as error:
        raise LogError(f"{path.name} cannot be backed up: {error}") from None
    finally:
        await asyncio.to_thread(to.unlink, missing_ok=True)


def _copy(path: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as source,
        contextlib.closing(sqlite3.connect(to, isolation_level=None)) as target,
    ):
        target.execute("PRAGMA journal_mode = OFF").fetchall()
        target.execute("PRAGMA synchronous = OFF").fetchall()
        # One read transaction, or a writer that never rests would have it begin again for ever.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        source.backup(target, pages=STEP_PAGES, sleep=0)
