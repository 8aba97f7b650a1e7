"""Backups of a data folder, taken while the service writes in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from .log import Head


class Backup(Protocol):
    """One backup, of one head of the log, ready to be read once. Close it, whatever came of it."""

    @property
    def head(self) -> Head:
        """The head of the log in it."""

    @property
    def name(self) -> str:
        """A name for its file."""

    def parts(self) -> AsyncIterator[bytes]:
        """The bytes of a tar. Its last member lists the others with their digests, so one that was cut off is not
        taken for a whole one."""

    def close(self) -> None:
        """Remove what was set aside for it; harmless when repeated."""


class Backups(Protocol):
    async def begin(self, *, saes: bool) -> Backup:
        """Set aside what belongs to the head of now, while appends go on. `saes`: with the files of SAEs.

        Raises `DiskFullError` if there is no room for a copy of the log, `NotReadyError` if too many are being taken.
        """
