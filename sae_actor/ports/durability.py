"""Files on disk: uploads on their way there, fsync, what may be wrong with a disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from ..errors import DiskFullError, InternalError, SAEError, TooLargeError


def is_full(error: Exception) -> bool:
    """Whether there is no room, by an error of the system or of SQLite."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def disk_failure(error: OSError, what: str) -> SAEError:
    """The service's own error for one of the disk; `what` came of it."""
    if is_full(error):
        return DiskFullError("The disk is full", reason="no_space")
    return InternalError(f"{what}: {error.strerror}", reason="file_system")


def fsync_path(path: Path) -> None:
    """Make a file's bytes durable; for a folder, the renames and links in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for the owner alone."""
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


async def receive(body: AsyncIterator[bytes], to: Path, most: int) -> None:
    """Stream an upload to a new file; one that breaks off leaves none. `TooLargeError` above `most` bytes,
    `DiskFullError`."""
    size = 0
    try:
        await asyncio.to_thread(private_folder, to.parent)
        with to.open("xb") as file:
            async for part in body:
                size += len(part)
                if size > most:
                    what = f"an upload has at most {most} bytes ([data] upload_bytes)"
                    raise TooLargeError(what, size=size, limit=most)
                await asyncio.to_thread(file.write, part)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(to)
        if isinstance(error, OSError):
            raise disk_failure(error, "The upload cannot be kept") from None
        raise
