"""Digests of files: sha256, the git blob id, and what is known to be unchanged since it was computed."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from ..domain.refs import SaeFile

CHUNK = 1 << 20


class Stamp(Struct, frozen=True):
    """A file's metadata; equal stamps mean that it was not written to."""

    bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path | int) -> Stamp:
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class BlobDigest:
    """sha256 and, for a file outside large-file storage, the git blob id of bytes that arrive in pieces.

    git's id is sha1("blob <size>\\0" ‖ content), so the size has to be known before the first byte.
    """

    def __init__(self, size: int, *, git: bool) -> None:
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False) if git else None

    def update(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def name(self) -> str:
        """What the hub calls a file with these bytes."""
        return self.sha256 if self._git is None else self._git.hexdigest()


def feed(digest: BlobDigest, descriptor: int, *, report: Callable[[int], None] | None = None) -> int:
    """Put all bytes of the open file into `digest`; how many there were. `report` hears of every piece."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    total = 0
    while count := os.preadv(descriptor, [buffer], total):
        digest.update(view[:count])
        total += count
        if report is not None:
            report(count)
    return total


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class KnownDigests:
    """sha256 by file, computed again as soon as the file's stamp differs. Thread-safe; lives as long as the process."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, str]] = {}
        self._lock = threading.Lock()

    def remember(self, path: Path, stamp: Stamp, sha256: str) -> None:
        with self._lock:
            self._known[path] = (stamp, sha256)

    def of(self, path: Path) -> tuple[Stamp, str]:
        """Stamp and sha256 of the file as it is now; OSError if it cannot be read."""
        stamp = Stamp.of(path)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known
        sha256 = sha256_of(path)
        # A stamp from before the reading: a write during it shows up as a difference the next time.
        self.remember(path, stamp, sha256)
        return stamp, sha256

    def saefile(self, path: Path, name: str) -> SaeFile:
        stamp, sha256 = self.of(path)
        return SaeFile(name, stamp.bytes, sha256)
