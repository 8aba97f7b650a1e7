"""Copies of databases that somebody may be writing: by SQLite, never by their bytes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..errors import LogError
from ..eventlog.schema import prepare_reader, read_only_uri
from .contents import ArchiveMember

STEP_PAGES = 64


@asynccontextmanager
async def copied(member: ArchiveMember, to: Path) -> AsyncIterator[Path]:
    """A copy as it is now, for a while. In WAL mode its writers do not wait for it. Raises `LogError`."""
    try:
        await asyncio.to_thread(_copy, member, to)
        yield to
    except sqlite3.Error as error:
        raise LogError(f"{member.path.name} cannot be backed up: {error}") from None
    finally:
        await asyncio.to_thread(to.unlink, missing_ok=True)


def _copy(member: ArchiveMember, to: Path) -> None:
    try:
        _copy_file(member.path, to, at_rest=member.at_rest)
    except sqlite3.Error:
        if member.second is None or member.path.exists():
            raise
        _copy_file(member.second, to, at_rest=False)


def _copy_file(path: Path, to: Path, *, at_rest: bool) -> None:
    to.unlink(missing_ok=True)
    uri = read_only_uri(path) if at_rest else f"{path.absolute().as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as source,
        contextlib.closing(sqlite3.connect(to, isolation_level=None)) as target,
    ):
        if at_rest:
            prepare_reader(source)
        target.execute("PRAGMA journal_mode = OFF").fetchall()
        target.execute("PRAGMA synchronous = OFF").fetchall()
        # One read transaction, or a writer that never rests would have it begin again for ever.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        source.backup(target, pages=STEP_PAGES, sleep=0)
