"""The tables of `features.db`. What is there can be made again: a file of another version is thrown away."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = "features.db"
VERSION = 1
SHIFT = 32
"""The id of a shown row is the SAE's number, shifted by so many bits, plus the feature."""

_TABLES = """
CREATE TABLE saes(number INTEGER PRIMARY KEY, sae_id TEXT NOT NULL UNIQUE);
CREATE TABLE sources(id INTEGER PRIMARY KEY, sae INTEGER NOT NULL, source TEXT NOT NULL, sha256 TEXT NOT NULL,
                     position INTEGER NOT NULL, UNIQUE(sae, source));
CREATE TABLE labels(source INTEGER, feature INTEGER, line INTEGER, label TEXT NOT NULL, score REAL, created TEXT,
                    PRIMARY KEY(source, feature, line)) WITHOUT ROWID;
CREATE TABLE statistics(source INTEGER, feature INTEGER, line INTEGER, data BLOB NOT NULL,
                        PRIMARY KEY(source, feature, line)) WITHOUT ROWID;
CREATE TABLE examples(source INTEGER, feature INTEGER, line INTEGER, max REAL NOT NULL, top TEXT NOT NULL,
                      data BLOB NOT NULL, PRIMARY KEY(source, feature, line)) WITHOUT ROWID;
CREATE TABLE shown(id INTEGER PRIMARY KEY, label TEXT, folded TEXT, density REAL, max REAL, top_tokens TEXT NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(label, top_tokens, tokenize = 'unicode61 remove_diacritics 2');
"""


def open_writer(path: Path | None) -> sqlite3.Connection:
    """The database at `path`, made anew if it is missing, damaged or of another version; None: in memory."""
    if path is None:
        return _prepared(_connect(":memory:"))
    try:
        return _prepared(_connect(_private(path)))
    except sqlite3.DatabaseError as error:
        logger.warning("%s cannot be used (%s) and is made again", path, error)
        for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            each.unlink(missing_ok=True)
        return _prepared(_connect(_private(path)))


def open_reader(path: Path) -> sqlite3.Connection:
    connection = _connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    connection.execute("PRAGMA query_only = ON")
    return connection


def copied(path: Path) -> sqlite3.Connection:
    """What lies at `path`, in memory; its file is not touched. Empty if it cannot be read."""
    memory = _connect(":memory:")
    try:
        lying = _connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            if _version(lying) == VERSION:
                lying.backup(memory)
        finally:
            lying.close()
        return _prepared(memory)
    except sqlite3.DatabaseError:
        memory.close()
        return _prepared(_connect(":memory:"))


def _private(path: Path) -> str:
    """As the texts that its examples are from."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    return str(path)


def _connect(place: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(place, uri=uri, timeout=5.0, isolation_level=None, check_same_thread=False)


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        version = _version(connection)
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}")
        if version == 0:
            connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        connection.execute("SELECT count(*) FROM sources").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found
