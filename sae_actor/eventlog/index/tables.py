"""The tables of `index.db`, and sums over their rows: a changed byte changes a sum, or what SQLite checks itself."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..schema import prepare_reader, read_only_uri

NAME = "index.db"
VERSION = 1
"""To be raised whenever the tables, or what `entry_of` makes of an event, change: a test pins both."""
APPLICATION_ID = int.from_bytes(b"SAEi")
BLOCK = 128
"""Positions that share one line about their times."""

TABLES = {
    "about": "CREATE TABLE about (data BLOB NOT NULL) STRICT",
    "names": "CREATE TABLE names (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL, "
    "UNIQUE (kind, name)) STRICT",
    "listed": "CREATE TABLE listed (sae INTEGER NOT NULL, type INTEGER NOT NULL, position INTEGER NOT NULL, "
    "PRIMARY KEY (sae, type, position)) STRICT, WITHOUT ROWID",
    "generations": "CREATE TABLE generations (began INTEGER PRIMARY KEY, ended INTEGER, key INTEGER, "
    "principal INTEGER NOT NULL, tag INTEGER, readable INTEGER NOT NULL) STRICT",
    "by_key": "CREATE INDEX by_key ON generations (key)",
    "by_tag": "CREATE INDEX by_tag ON generations (tag, began) WHERE tag IS NOT NULL",
    "by_principal": "CREATE INDEX by_principal ON generations (principal, began)",
    "nameless": "CREATE INDEX nameless ON generations (began) WHERE key IS NULL",
    "turns": "CREATE TABLE turns (position INTEGER PRIMARY KEY) STRICT",
    "blocks": "CREATE TABLE blocks (number INTEGER PRIMARY KEY, earliest TEXT NOT NULL) STRICT",
}
"""Name → statement; the file holds these texts, to the letter. `listed` has each event under the SAE 0, and under each
SAE that it names. `readable`: the payload of a beginning. `blocks` has the earliest time of `BLOCK` events."""

PRIME = 4294967291
_SUMMED = {
    "listed": "(sae * 7919 + type * 104729 + position * 1299709) % 4294967291",
    "generations": "(began * 1299709 + ifnull(ended + 1, 0) * 15485 + ifnull(key + 1, 0) + principal * 7919 "
    "+ ifnull(tag + 1, 0) * 104729 + readable * 224737) % 4294967291",
    "turns": "(position * 1299709) % 4294967291",
}


def of_listed(sae: int, type_: int, position: int) -> int:
    return (sae * 7919 + type_ * 104729 + position * 1299709) % PRIME


def of_generation(row: Sequence[Any]) -> int:
    began, ended, key, principal, tag, readable = row
    after = [0 if each is None else each + 1 for each in (ended, key, tag)]
    known = began * 1299709 + principal * 7919 + readable * 224737
    return int((known + after[0] * 15485 + after[1] + after[2] * 104729) % PRIME)


def of_turn(position: int) -> int:
    return position * 1299709 % PRIME


def of_text(number: int, kind: int, text: str) -> int:
    return zlib.crc32(f"{number} {kind} {text}".encode())


class IndexHead(NamedTuple):
    """Which log it is of, how far, and what the rows of its tables sum up to."""

    log_id: str
    position: int
    """Of the last event that is in it."""
    hash: str
    sums: dict[str, int]

    def encoded(self) -> bytes:
        data = msgspec.json.encode(self)
        return zlib.crc32(data).to_bytes(4) + data


NOTHING = IndexHead("", 0, "", dict.fromkeys(("listed", "generations", "turns", "names", "blocks"), 0))


class UnfitIndexError(Exception):
    """It is of another version, or damaged."""


DAMAGE = (sqlite3.Error, UnfitIndexError, msgspec.MsgspecError, ValueError, TypeError, IndexError)
"""What reading changed bytes may raise: text that is none, values of other types."""


def read_about(connection: sqlite3.Connection) -> IndexHead:
    """Raises `UnfitIndexError`."""
    rows = connection.execute("SELECT data FROM about").fetchall()
    if len(rows) != 1 or zlib.crc32(rows[0][0][4:]).to_bytes(4) != rows[0][0][:4]:
        raise UnfitIndexError("what it says of itself is damaged")
    return msgspec.json.decode(rows[0][0][4:], type=IndexHead)


def sums(connection: sqlite3.Connection) -> dict[str, int]:
    found = {
        name: connection.execute(f"SELECT coalesce(sum({each}), 0) FROM {name}").fetchone()[0]
        for name, each in _SUMMED.items()
    }
    texts = {
        "names": connection.execute("SELECT id, kind, name FROM names"),
        "blocks": connection.execute("SELECT number, 0, earliest FROM blocks"),
    }
    return {**found, **{name: sum(of_text(*row) for row in rows) for name, rows in texts.items()}}


def check(connection: sqlite3.Connection) -> None:
    """Compare all of it with its sums; seconds for millions of events. Raises `UnfitIndexError`."""
    if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
        raise UnfitIndexError("its structure is damaged")
    if sums(connection) != read_about(connection).sums:
        raise UnfitIndexError("its rows are not those that were written")


def connect(path: Path | None) -> sqlite3.Connection:
    """To be written, made where it is missing; None: one that nobody else sees, and that is gone once it is closed.

    Raises `UnfitIndexError`, `sqlite3.Error`.
    """
    if path is not None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # as private as the log
    connection = sqlite3.connect("" if path is None else path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA secure_delete = ON")
        # A crash of the machine may cost all of it; killed, it is as the last commit left it.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            made = "; ".join(TABLES.values())
            head = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}"
            first = f"INSERT INTO about VALUES (X'{NOTHING.encoded().hex()}')"
            connection.executescript(f"BEGIN; {head}; {made}; {first}; COMMIT;")
        refuse_unfit(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """As it lies: no byte changes, no file is made. Nobody may be writing it. Raises as `connect`."""
    connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, check_same_thread=False)
    try:
        prepare_reader(connection)
        refuse_unfit(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def refuse_unfit(connection: sqlite3.Connection) -> None:
    """Raises `UnfitIndexError` for what this version did not make."""
    kinds = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if kinds != [APPLICATION_ID, VERSION]:
        raise UnfitIndexError("it is of another version")
    found = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    if dict(found) != TABLES:
        raise UnfitIndexError("its tables are others")
    read_about(connection)


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
