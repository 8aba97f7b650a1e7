"""A data folder made of a backup: verified first, then there as a whole, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from ..domain.events import LogHead
from ..domain.messages import LogOrigin
from ..domain.structs import filled
from ..errors import LogDamagedError, LogUnusableError
from ..eventlog.checkpoint import NAME as CHECKPOINT
from ..eventlog.inspection import inspect
from ..eventlog.lock import NAME as LOCK
from ..eventlog.lock import FolderLock, make_folder
from ..eventlog.origin import NAME as ORIGIN
from ..eventlog.origin import write_origin
from ..eventlog.schema import NAME as DATABASE
from ..ports.durability import fsync_path, private_folder
from .checking import CHUNK, BackupFile, checked
from .contents import FOLDERS, RESTORING, SAE_FOLDERS, ListedFile, Manifest

NAMED = (*FOLDERS, *SAE_FOLDERS, ORIGIN, CHECKPOINT)
"""What it gives a name before the log."""


async def restore(backup: Path, folder: Path) -> Manifest:
    """Make a data folder of a backup. The first start on it writes LogForked.

    The tar's members are compared with its manifest before anything is written, and the log's whole chain, its
    checkpoint and its head before anything has its name. Raises `LogUnusableError` unless the folder is empty or
    missing, `NotFoundError`, `LogDamagedError`; then the folder is as it was.
    """
    _refuse_unless_empty(folder)
    with checked(backup) as found:
        made = await asyncio.to_thread(_make, folder)
        lock = await FolderLock.acquire(folder, shared=False)
        try:
            _refuse_unless_empty(folder)
            await asyncio.to_thread(_write, found, folder)
        except OSError as error:
            raise LogUnusableError(f"{folder} cannot be written: {error.strerror}") from None
        finally:
            await asyncio.to_thread(_tidy, folder, made=made)
            lock.close()
        return found.manifest


def _make(folder: Path) -> bool:
    """Whether it was missing."""
    missing = not folder.exists()
    make_folder(folder)
    return missing


def _tidy(folder: Path, *, made: bool) -> None:
    """Without a log there is to be nothing."""
    _clear(folder)
    if not (folder / DATABASE).exists():
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            if made:
                folder.rmdir()


def _clear(folder: Path) -> None:
    """Remove what a restore has begun with: while its own folder is there and no log, all that it named too."""
    if (folder / RESTORING).is_dir() and not (folder / DATABASE).exists():
        for name in NAMED:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder / RESTORING, ignore_errors=True)


def _refuse_unless_empty(folder: Path) -> None:
    """Raises `LogUnusableError`; what a killed restore left does not count."""
    try:
        held = set(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise LogUnusableError(f"{folder} cannot be read: {error.strerror}") from None
    others = held - {RESTORING, LOCK, *(NAMED if RESTORING in held and DATABASE not in held else ())}
    if others:
        raise LogUnusableError(f"{folder} is not empty: it holds {min(others)}; a restore overwrites nothing")


def _write(found: BackupFile, folder: Path) -> None:
    begun, manifest = folder / RESTORING, found.manifest
    _clear(folder)
    begun.mkdir()
    for file in manifest.files:
        _write_file(found, file, begun / file.path)
    log = inspect(begun, thorough=True)
    if (log.log_id, log.head) != (manifest.log_id, manifest.head):
        raise LogDamagedError(
            f"the log in it ends at {log.head.position}, the manifest says {manifest.head.position}: "
            f"they do not belong together"
        )
    write_origin(begun, LogOrigin(reason="restored", log_id=log.log_id, head=filled(LogHead, log.head)))
    for place, _, _ in os.walk(begun, topdown=False):
        fsync_path(Path(place))
    # The log gets its name last: until then a start finds a checkpoint without a log, and refuses.
    last = (CHECKPOINT, DATABASE)
    for name in (*sorted(set(os.listdir(begun)) - set(last)), *last):
        if (begun / name).exists():
            (begun / name).rename(folder / name)
    fsync_path(folder)


def _write_file(found: BackupFile, file: ListedFile, to: Path) -> None:
    private_folder(to.parent)
    if file.link is not None:
        to.symlink_to(file.link)
        return
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as written, found.opened(file) as reader:
        shutil.copyfileobj(reader, written, CHUNK)
        written.flush()
        os.fsync(written.fileno())
