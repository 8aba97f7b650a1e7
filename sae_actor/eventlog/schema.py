"""`events.db`: the tables, and how connections to it are set up."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

from .wal import holds_commit

NAME = "events.db"
WAL_NAME = f"{NAME}-wal"
APPLICATION_ID = int.from_bytes(b"SAEa")
USER_VERSION = 1
"""Of the file's layout; the version of each payload is its event's `schema`."""

COLUMNS = "position, event_id, type, schema, time, command_id, principal, data, salt, data_hash, hash"
_WIDTH = COLUMNS.count(",") + 1

READ_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""Errors of a damaged database; the second if SQLite's message quotes bytes that are not text."""

SCHEMA = {
    "meta": """CREATE TABLE meta (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    log_id TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT""",
    # data and salt may be NULL: a payload that was erased.
    "events": """CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    schema INTEGER NOT NULL,
    time TEXT NOT NULL,
    command_id TEXT,
    principal TEXT NOT NULL,
    data BLOB,
    salt BLOB,
    data_hash BLOB NOT NULL CHECK (length(data_hash) = 32),
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT""",
    "events_of_command": "CREATE INDEX events_of_command ON events (command_id) WHERE command_id IS NOT NULL",
    "events_without_gap": """CREATE TRIGGER events_without_gap BEFORE INSERT ON events
WHEN NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM events)
BEGIN SELECT RAISE(ABORT, 'position is not the next one'); END""",
    # The one change that is allowed: erasing a payload right after the PayloadRedacted that names it.
    "events_are_final": """CREATE TRIGGER events_are_final BEFORE UPDATE ON events
WHEN NOT (NEW.data IS NULL AND NEW.salt IS NULL AND OLD.data IS NOT NULL
    AND NEW.position IS OLD.position AND NEW.event_id IS OLD.event_id AND NEW.type IS OLD.type
    AND NEW.schema IS OLD.schema AND NEW.time IS OLD.time AND NEW.command_id IS OLD.command_id
    AND NEW.principal IS OLD.principal AND NEW.data_hash IS OLD.data_hash AND NEW.hash IS OLD.hash
    AND (SELECT type = 'PayloadRedacted'
        AND instr(CAST(data AS TEXT), '{"redacted_position":' || OLD.position || ',') = 1
        FROM events ORDER BY position DESC LIMIT 1))
BEGIN SELECT RAISE(ABORT, 'events are final'); END""",
    "events_stay": """CREATE TRIGGER events_stay BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are final'); END""",
    "meta_is_final": """CREATE TRIGGER meta_is_final BEFORE UPDATE ON meta
BEGIN SELECT RAISE(ABORT, 'meta is final'); END""",
    "meta_stays": """CREATE TRIGGER meta_stays BEFORE DELETE ON meta
BEGIN SELECT RAISE(ABORT, 'meta is final'); END""",
}
"""Name → statement; the file holds these texts, to the letter."""

_SETTINGS: tuple[tuple[str, str, object], ...] = (
    # EXCLUSIVE comes first: with it the WAL index lives on the heap and no -shm file is ever made.
    ("locking_mode", "EXCLUSIVE", "exclusive"),
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("wal_autocheckpoint", "0", 0),  # SQLite's own would keep a failed fsync to itself; the writer does it
    ("temp_store", "MEMORY", 2),
    ("recursive_triggers", "ON", 1),  # or INSERT OR REPLACE would delete without the trigger
    ("trusted_schema", "OFF", 0),
    ("cell_size_check", "ON", 1),
    ("secure_delete", "ON", 1),  # what is erased is overwritten
)


@functools.lru_cache(maxsize=128)
def insert_statement(rows: int) -> str:
    """One INSERT of this many rows: in autocommit it is one atomic transaction."""
    row = f"({', '.join('?' * _WIDTH)})"
    return f"INSERT INTO events ({COLUMNS}) VALUES {', '.join([row] * rows)}"


def read_only_uri(path: Path) -> str:
    """For a connection that leaves every byte of the folder as it is, and makes no file.

    If the WAL is empty the file is everything (`immutable`). With a WAL the VFS without locks is used:
    together with the exclusive locking mode it keeps the index of the WAL on the heap, and frames cannot be moved
    into a database that was opened for reading. `events.lock` keeps a writer away meanwhile, from every database of
    the folder.
    """
    has_wal = holds_commit(path.with_name(f"{path.name}-wal"))
    return f"{path.absolute().as_uri()}?mode=ro&{'vfs=unix-none' if has_wal else 'immutable=1'}"


def prepare_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA query_only = ON")


def prepare_writer(connection: sqlite3.Connection) -> str | None:
    """Set and read back every setting; the name of the first that did not take, or None."""
    for name, value, expected in _SETTINGS:
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        if connection.execute(f"PRAGMA {name}").fetchone() != (expected,):
            return name
    return None
