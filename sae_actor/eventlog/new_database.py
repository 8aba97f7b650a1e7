"""Making an `events.db`: complete and durable under its name, or not there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..ports.clock import SystemClock
from ..ports.durability import fsync_path
from .schema import APPLICATION_ID, NAME, SCHEMA, USER_VERSION, insert_statement

FRESH = f"{NAME}.new"
"""What a database is called before it is complete."""


def publish_database(folder: Path) -> None:
    """Give the fresh database its name, durably."""
    fsync_path(folder / FRESH)
    os.replace(folder / FRESH, folder / NAME)
    fsync_path(folder)


def remove_fresh(folder: Path) -> None:
    """Remove what was not published; harmless if there is nothing."""
    for suffix in ("", "-journal", "-wal"):
        (folder / f"{FRESH}{suffix}").unlink(missing_ok=True)


class NewDatabase:
    """A database under another name until it is published. Blocking; for one thread.

    Closed without `publish`, it leaves nothing. The caller holds the folder's lock.
    Methods raise `sqlite3.Error` and `OSError`.
    """

    def __init__(self, folder: Path, log_id: str, created: str | None = None) -> None:
        """created: RFC 3339 UTC; now, if None."""
        self._folder = folder
        self._fresh = folder / FRESH
        remove_fresh(folder)  # what a start left that was killed here
        os.close(os.open(self._fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        # No journal: the file is read only once complete. Another thread than its maker's may close it.
        self._db = sqlite3.connect(self._fresh, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            self._db.execute("PRAGMA journal_mode = OFF").fetchall()
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {USER_VERSION}")
            for statement in SCHEMA.values():
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES (1, ?, ?)", (log_id, created or SystemClock().now()))
        except BaseException:
            self.close()
            raise

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Rows as `chain.Row` has them, in order."""
        self._db.executemany(insert_statement(1), rows)

    def publish(self) -> None:
        """Give the database its name, durably."""
        self._db.execute("COMMIT")
        # Into the header of the file, so that the first opener finds a WAL database.
        self._db.execute("PRAGMA journal_mode = WAL").fetchall()
        self._db.close()
        publish_database(self._folder)

    def close(self) -> None:
        """Remove what was not published. Harmless after `publish`."""
        self._db.close()
        remove_fresh(self._folder)
