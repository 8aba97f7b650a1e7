"""`events.lock`: one writer, or any number of readers, of a data folder.

SQLite's own locks are not enough: POSIX drops them all when the process opens and closes the file once more by path.
`flock` on a separate file decides; the pid inside is only for the message, and may be stale or reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from ..errors import LogHeldError, LogUnusableError

NAME = "events.lock"
ORPHAN_SECONDS = 5.0
"""How long to wait if the recorded pid is dead: an orphaned child may still hold the inherited lock."""
_POLL_SECONDS = 0.05


def make_folder(folder: Path) -> None:
    """The folder that is to be held. Raises `LogUnusableError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LogUnusableError(f"the data folder {folder} cannot be made: {error.strerror}") from None


class FolderLock:
    """A held lock. The descriptor is close-on-exec; children must be spawned, a fork would share the lock."""

    def __init__(self, fd: int | None, *, named: bool) -> None:
        self._fd = fd
        self._named = named

    @classmethod
    async def acquire(cls, folder: Path, *, shared: bool) -> FolderLock:
        """The writer's lock, or with `shared` a reader's, which writes nothing.

        Raises `LogHeldError` (`pid`) immediately if a living process holds it; after `ORPHAN_SECONDS` if the recorded
        pid is dead or not written yet. Before the first writer a reader finds no lock file.
        """
        fd = _open(folder / NAME, shared=shared)
        if fd is None:
            return cls(None, named=False)
        try:
            await _wait(fd, folder, shared=shared)
            if not shared:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(fd)
            raise LogUnusableError(f"{folder / NAME} cannot be locked: {error.strerror}") from None
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, named=not shared)

    def close(self) -> None:
        """Let go of it; harmless when repeated."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        if self._named:
            with contextlib.suppress(OSError):  # the text is only for a message; the lock goes with the descriptor
                os.ftruncate(fd, 0)
        os.close(fd)


def _open(path: Path, *, shared: bool) -> int | None:
    try:
        if shared:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        if shared:
            return None
        raise LogUnusableError(f"{path.parent} is not there") from None
    except OSError as error:
        remedy = "" if shared else "; --read-only serves it as it is"
        raise LogUnusableError(f"{path} cannot be opened: {error.strerror}{remedy}") from None


async def _wait(fd: int, folder: Path, *, shared: bool) -> None:
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(fd, operation)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        pid = _holder(fd)
        if pid is not None and _alive(pid):
            raise LogHeldError(
                f"the log in {folder} is held by process {pid}; a running service answers GET /api/log, and "
                f"sae-actor backup copies it",
                pid=pid,
            )
        if time.monotonic() >= deadline:
            who = "a reader" if pid is None else f"a reader, or a child that process {pid} left behind"
            raise LogHeldError(f"the log in {folder} is held by another process ({who})", pid=pid)
        await asyncio.sleep(_POLL_SECONDS)


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
