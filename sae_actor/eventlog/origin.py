"""Which file a log is in, and how it came there: what a start compares with the last one on record.

`events.origin` is written by `restore` and `log import`, before the log gets its name; the first start, which puts the
fork on record, removes it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ..domain.events import LogFile
from ..domain.messages import LogOrigin
from ..ports.durability import fsync_path
from .schema import NAME as DATABASE

NAME = "events.origin"


def log_file(folder: Path) -> LogFile:
    """By path, but without opening: closing a descriptor of events.db would drop SQLite's own locks."""
    path = folder / DATABASE
    found, system = os.stat(path), os.statvfs(path)
    return LogFile(
        device=f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}",
        inode=str(found.st_ino),
        file_system=f"{system.f_fsid:x}" if system.f_fsid else None,
    )


def read_origin(folder: Path) -> LogOrigin | None:
    """None if a service made the log, or one has taken it over since."""
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=LogOrigin)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        # Cut off while it was written: the log has no name then. Another file of that name is not ours.
        return None


def write_origin(folder: Path, origin: LogOrigin) -> None:
    """Durable when this returns. Raises `OSError`."""
    (folder / NAME).write_bytes(msgspec.json.encode(origin) + b"\n")
    fsync_path(folder / NAME)
    fsync_path(folder)


def forget_origin(folder: Path) -> None:
    """Harmless if there is none, and if it cannot be removed: a fork that is on record does not happen again."""
    with contextlib.suppress(OSError):
        (folder / NAME).unlink()
