"""The client's calls about backups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from .wire import Wire

SILENCE_SECONDS = 600.0
"""The service copies and verifies its log before the first byte."""


class BackupCalls:
    """A part of `Client`."""

    _wire: Wire

    def backup(self, *, saes: bool = False) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a backup of the data folder, a tar, as they come; `saes`: with the files of SAEs.

        One that is cut off ends with `UnreachableError`. `sae-actor backup` writes one to a file, verified.
        """
        query = {"saes": "true" if saes else None}
        return self._wire.stream("GET", "/api/log/backup", silence=SILENCE_SECONDS, query=query)
