"""`head.checkpoint`: the head of the log, written outside the log.

A dropped tail leaves a shorter chain that verifies; only a head kept elsewhere shows it. The file holds two slots in
blocks of their own, written in turn with every commit, so that a torn write leaves the other one intact.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from ..errors import LogDamagedError, LogUnusableError
from ..ports import Head
from ..ports.durability import fsync_path

NAME = "head.checkpoint"
_MAGIC = b"SAEHEAD1"
_SLOT = struct.Struct(">8s16sQ32s")
_CRC = struct.Struct(">I")
_BLOCK = 4096
"""Distance of the slots: no sector of any disk holds both."""
_FILE_BYTES = 2 * _BLOCK


def _slot(log_id: str, head: Head) -> bytes:
    body = _SLOT.pack(_MAGIC, bytes.fromhex(log_id), head.position, bytes.fromhex(head.hash))
    return body + _CRC.pack(zlib.crc32(body))


def _parse(slot: bytes) -> tuple[str, Head] | None:
    body, crc = slot[: _SLOT.size], slot[_SLOT.size : _SLOT.size + _CRC.size]
    if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(body):
        return None
    magic, log_id, position, digest = _SLOT.unpack(body)
    return (log_id.hex(), Head(position, digest.hex())) if magic == _MAGIC else None


def read_checkpoint(folder: Path, log_id: str) -> list[Head]:
    """The heads on record, newest first; empty when there is no file.

    Raises `LogDamagedError` for a file without one whole slot, or one of another log.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LogUnusableError(f"{path} cannot be read: {error.strerror}") from None
    slots = [slot for at in (0, _BLOCK) if (slot := _parse(content[at : at + _BLOCK])) is not None]
    if not slots:
        raise LogDamagedError(
            f"{path} holds no readable head, so a dropped tail would go unnoticed. "
            f"If you know that the log is complete, delete the file and start again"
        )
    if foreign := {owner for owner, _ in slots} - {log_id}:
        raise LogDamagedError(
            f"{path} belongs to the log {min(foreign)[:8]}, events.db is the log {log_id[:8]}: "
            f"put back the file that belongs here",
            first_bad=1,
        )
    return sorted((head for _, head in slots), key=lambda head: -head.position)


class Checkpoint:
    """The open file of a writer. `write` costs a microsecond and is durable after the next `sync`."""

    def __init__(self, fd: int, log_id: str) -> None:
        self._fd = fd
        self._log_id = log_id
        self._turn = 1

    @classmethod
    def create(cls, folder: Path, log_id: str, head: Head) -> Checkpoint:
        """Replace the file by one that holds `head`: the old or the new file is there, never half of one."""
        fresh = folder / f"{NAME}.new"
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, _slot(log_id, head).ljust(_FILE_BYTES, b"\0"), 0)
            os.fsync(fd)
            os.replace(fresh, folder / NAME)
            fsync_path(folder)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, log_id)

    def write(self, head: Head) -> None:
        """Record `head`, which is durable in the log already, in the slot whose turn it is."""
        os.pwrite(self._fd, _slot(self._log_id, head), self._turn * _BLOCK)
        self._turn ^= 1

    def sync(self) -> None:
        """Make the slots durable; blocks."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
