"""Data folders and backups of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_actor.backups.making import ServiceBackups
from sae_actor.domain.state import EMPTY
from sae_actor.eventlog import SqliteLog
from sae_actor.ports import Backup
from sae_actor.ports.clock import SystemClock


def backups_of(log: SqliteLog, folder: Path) -> ServiceBackups:
    return ServiceBackups(log, folder, lambda: EMPTY, SystemClock())


async def taken(backup: Backup) -> bytes:
    """All of its bytes; it is closed."""
    try:
        return b"".join([part async for part in backup.parts()])
    finally:
        backup.close()


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {each.name: file.read() if (file := tar.extractfile(each)) else b"" for each in tar}


Change = Callable[[list[tuple[tarfile.TarInfo, bytes]]], Any]


def changed(data: bytes, change: Change) -> bytes:
    """The tar after a change to its members."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        held = [(each, file.read() if each.isreg() and (file := tar.extractfile(each)) else b"") for each in tar]
    change(held)
    to = io.BytesIO()
    with tarfile.open(fileobj=to, mode="w") as tar:
        for info, content in held:
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return to.getvalue()
