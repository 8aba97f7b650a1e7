"""Examine a data folder before anything in it is opened for writing: identity, structure, chain, checkpoint.

Nothing is modified. The caller holds the folder's lock, and no connection to the log is open in
this process (reading the file by path would drop SQLite's locks).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import DecodeError
from msgspec.json import Decoder

from ..domain.events import PAYLOADS, LogTruncated
from ..errors import LogDamagedError, LogUnusableError
from ..ports import Head
from .chain import Walk, genesis, unwitnessed
from .checkpoint import NAME as CHECKPOINT_NAME
from .checkpoint import read_checkpoint
from .schema import APPLICATION_ID, COLUMNS, NAME, READ_ERRORS, SCHEMA, USER_VERSION, prepare_reader, read_only_uri

_MAGIC = b"SQLite format 3\0"
_LOG_ID = re.compile(rb"[0-9a-f]{32}")
_MISSING_ROW = re.compile(r"row (\d+) missing")
_truncation = Decoder(LogTruncated)


@dataclass(frozen=True)
class Findings:
    """A log that verifies."""

    log_id: str
    head: Head
    witnessed: bool
    """There is a checkpoint; without one a dropped tail would go unnoticed."""
    truncation: Head | None = None
    """The newest recorded head, if the log is shorter and that was accepted."""
    unknown: tuple[str, int, int] | None = None
    """(type, schema, position) of the first event that this version does not know."""
    unfinished_redactions: tuple[int, ...] = ()
    """Events that a PayloadRedacted names and whose payload is still there."""
    clock_skew: tuple[int, ...] = ()
    """As in `Verification`."""
    walk: Walk | None = None
    """The walk that verified it, to be continued by its writer; None for a log without an event."""


def inspect(
    folder: Path,
    *,
    accept_truncation: int | None = None,
    thorough: bool = False,
    database: str = NAME,
    heads: Sequence[Head] = (),
) -> Findings:
    """Walk the whole log; `thorough` compares the index of commands with the table too.

    database: the file's name; one that is not yet called `NAME` has no checkpoint. heads: further ones, witnessed
    elsewhere, that the log must have.

    Raises `LogUnusableError` for anything but a log of this program and version, and for an accepted loss that is not
    proven; and `LogDamagedError` with `first_bad`,
    the first position that does not verify, `events` and `head`, what verifies before it.
    """
    if database == NAME and missing_log(folder):
        raise LogUnusableError(f"there is no log in {folder}")
    check_identity(folder / database)
    with reading(folder / database) as connection, ThreadPoolExecutor(1) as aside:
        altered = _altered(connection)
        log_id = _read_log_id(connection)
        walk = Walk(log_id)
        structure = aside.submit(_check_structure, folder / database, "integrity_check" if thorough else "quick_check")
        _walk(connection, walk)
        if (fault := walk.fault()) is not None:
            raise damage(walk, *fault)
        if (bad := structure.result()) is not None:
            raise damage(walk, _mistyped(connection) or bad.first, f"the structure of events.db: {bad.detail}")
        if altered is not None:
            raise damage(walk, None, f"events.db: {altered}; the events themselves verify, up to {walk.position}")
        kept = read_checkpoint(folder, log_id) if database == NAME else []
        truncation = _compare(connection, log_id, walk, kept, accept_truncation)
        if accept_truncation is not None and truncation is None:
            _check_accepted(connection, folder, walk, accept_truncation, witnessed=bool(kept))
        _check_witnessed(connection, log_id, walk, heads)
    return Findings(
        log_id=log_id,
        head=walk.head,
        witnessed=bool(kept),
        truncation=truncation,
        unknown=_unknown(walk),
        unfinished_redactions=tuple(at for at in sorted(walk.redacted - walk.erased) if at <= walk.position),
        clock_skew=tuple(walk.skewed),
        walk=walk,
    )


def check_identity(path: Path) -> None:
    """Refuse, by the first 100 bytes, what cannot be a log of this version."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LogUnusableError(f"{path} is not a file")
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        raise LogUnusableError(f"there is no log: {path} does not exist") from None
    except OSError as error:
        raise LogUnusableError(f"{path} cannot be read: {error.strerror}") from None
    if not header:
        raise LogUnusableError(f"{path} is empty, not a log. Remove it to begin a new one")
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise LogDamagedError(f"{path} has no SQLite header: put back a copy of the file", first_bad=1)
    application_id = int.from_bytes(header[68:72])
    user_version = int.from_bytes(header[60:64])
    if application_id != APPLICATION_ID:
        raise LogUnusableError(f"{path} is a database of another program (application_id {application_id:#x})")
    if user_version != USER_VERSION:
        raise LogUnusableError(
            f"{path} has layout version {user_version}, this program knows {USER_VERSION}: use a newer sae-actor"
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing; text is read as bytes, which need not be UTF-8."""
    try:
        connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise LogUnusableError(f"{path} cannot be opened: {error}") from None
    try:
        connection.text_factory = bytes
        prepare_reader(connection)
        yield connection
    except sqlite3.OperationalError as error:
        raise LogUnusableError(f"{path} cannot be read: {error}") from None
    except READ_ERRORS as error:
        raise LogDamagedError(f"{path}: {error}") from None
    finally:
        connection.close()


def _altered(connection: sqlite3.Connection) -> str | None:
    """The difference between the triggers and indexes and those of this version, to the letter; also extra ones.

    Raises `LogDamagedError` for the tables of the log themselves: no event can be read from others.
    """
    try:
        found = dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    except READ_ERRORS as error:
        raise LogDamagedError(f"events.db: {error}", first_bad=1) from None
    wanted = {name.encode(): sql.encode() for name, sql in SCHEMA.items()}
    differing = sorted((name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)), key=repr)
    for name in differing:
        if wanted.get(name, b"").startswith(b"CREATE TABLE"):
            raise LogDamagedError(f"events.db: {_difference(name, found, wanted)}", first_bad=1)
    return _difference(differing[0], found, wanted) if differing else None


def _difference(name: Any, found: Mapping[Any, Any], wanted: Mapping[bytes, bytes]) -> str:
    shown = name.decode(errors="replace") if isinstance(name, bytes) else repr(name)
    if name not in wanted:
        return f"{shown} was added"
    kind = wanted[name].split()[1].decode().lower()
    return f"the {kind} {shown} {'was changed' if name in found else 'is gone'}"


def _read_log_id(connection: sqlite3.Connection) -> str:
    try:
        row: Any = connection.execute("SELECT log_id FROM meta").fetchone()
    except READ_ERRORS as error:
        raise LogDamagedError(f"events.db: {error}", first_bad=1) from None
    if row is None or not isinstance(row[0], bytes) or not _LOG_ID.fullmatch(row[0]):
        raise LogDamagedError("events.db does not name its log", first_bad=1)
    return row[0].decode()


def _walk(connection: sqlite3.Connection, walk: Walk) -> None:
    try:
        walk.feed(connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY position"))
    except READ_ERRORS as error:
        # The cursor reads one row ahead and drops the good row before the bad one: query it alone.
        query = f"SELECT {COLUMNS} FROM events WHERE position = ?"
        with contextlib.suppress(*READ_ERRORS):
            walk.feed(connection.execute(query, (walk.position + 1,)).fetchall())
        walk.bad = walk.bad or f"events.db cannot be read further: {error}"


class _BadStructure(NamedTuple):
    detail: str
    first: int | None = None


def _check_structure(path: Path, check: str) -> _BadStructure | None:
    """SQLite's own check, through its own connection, in parallel with the walk."""
    try:
        with reading(path) as connection:
            answer: list[tuple[bytes]] = connection.execute(f"PRAGMA {check}(1)").fetchall()
    except (LogDamagedError, LogUnusableError) as error:
        return _BadStructure(error.detail)
    if answer == [(b"ok",)]:
        return None
    detail = answer[0][0].decode(errors="replace") if answer else "no answer"
    named = _MISSING_ROW.search(detail)
    return _BadStructure(detail, None if named is None else int(named[1]))


def _mistyped(connection: sqlite3.Connection) -> int | None:
    """The first event with a column that changed its type: the walk reads text and bytes alike."""
    first: int | None = None
    with contextlib.suppress(*READ_ERRORS):
        (first,) = connection.execute(
            """SELECT min(position) FROM events WHERE typeof(event_id) <> 'text' OR typeof(type) <> 'text'
            OR typeof(time) <> 'text' OR typeof(command_id) NOT IN ('text', 'null') OR typeof(principal) <> 'text'
            OR typeof(data) NOT IN ('blob', 'null') OR typeof(salt) NOT IN ('blob', 'null')
            OR typeof(data_hash) <> 'blob' OR typeof(hash) <> 'blob'"""
        ).fetchone()
    return first


def _compare(
    connection: sqlite3.Connection, log_id: str, walk: Walk, heads: list[Head], accept_truncation: int | None
) -> Head | None:
    """Compare the chain with the recorded heads; returns the lost head if a loss was accepted."""
    if not heads or _hash_at(connection, log_id, walk, heads[0].position) == heads[0].hash:
        return None
    newest = heads[0]
    if _on_record(connection, walk, newest):
        return None
    if newest.position <= walk.position:
        agreeing = (head for head in heads if _hash_at(connection, log_id, walk, head.position) == head.hash)
        first_bad = max((head.position for head in agreeing), default=0) + 1
        what = f"head.checkpoint recorded another event {newest.position}: the log was replaced or rewritten"
        raise damage(walk, first_bad, what)
    if accept_truncation != walk.position:
        raise damage(
            walk,
            walk.position + 1,
            f"head.checkpoint recorded event {newest.position}, the log ends at {walk.position}: what lies between "
            f"is lost. Put back events.db and events.db-wal as they were, or go on without it: "
            f"--accept-truncation {walk.position}",
        )
    return newest


def _check_accepted(
    connection: sqlite3.Connection, folder: Path, walk: Walk, accepted: int, *, witnessed: bool
) -> None:
    """Refuse to accept a loss that did not happen: the folder or its log is the wrong one.

    A loss at this position that is already recorded is fine: the same start was repeated.
    """
    row: Any = connection.execute("SELECT type FROM events WHERE position = ?", (accepted + 1,)).fetchone()
    if row == (b"LogTruncated",):
        return
    why = "no event is lost" if witnessed else "without a head.checkpoint a loss is not proven"
    raise LogUnusableError(
        f"--accept-truncation {accepted}: the log in {folder} ends at event {walk.position}, and {why}. "
        "Start without --accept-truncation"
    )


def _check_witnessed(connection: sqlite3.Connection, log_id: str, walk: Walk, heads: Sequence[Head]) -> None:
    """Refuse a log that lacks one of `heads`: another event is there, or it ends before."""
    for head in sorted(heads, key=lambda each: each.position):
        found = _hash_at(connection, log_id, walk, head.position)
        if (fault := unwitnessed(head, found, walk.position)) is not None:
            raise damage(walk, *fault)


def _hash_at(connection: sqlite3.Connection, log_id: str, walk: Walk, position: int) -> str | None:
    if position == 0:
        return genesis(log_id).hex()
    if position > walk.position:
        return None
    row: Any = connection.execute("SELECT hash FROM events WHERE position = ?", (position,)).fetchone()
    digest: bytes = row[0]
    return digest.hex()


def _on_record(connection: sqlite3.Connection, walk: Walk, lost: Head) -> bool:
    """A LogTruncated names this head: the service was killed before it could renew the checkpoint."""
    since = min((at for (type_, _), at in walk.kinds.items() if type_ == b"LogTruncated"), default=None)
    if since is None:
        return False
    query = "SELECT data FROM events WHERE type = 'LogTruncated' AND position >= ?"
    for (data,) in connection.execute(query, (since,)):
        with contextlib.suppress(DecodeError):
            known = _truncation.decode(data or b"null")
            if (known.known_position, known.known_hash) == (lost.position, lost.hash):
                return True
    return False


def _unknown(walk: Walk) -> tuple[str, int, int] | None:
    unknown = [
        (position, type_.decode(errors="replace"), schema)
        for (type_, schema), position in walk.kinds.items()
        if (cls := PAYLOADS.get(type_.decode(errors="replace"))) is None or schema > cls.schema
    ]
    if not unknown:
        return None
    position, name, schema = min(unknown)
    return name, schema, position


def damage(walk: Walk, first_bad: int | None, what: str) -> LogDamagedError:
    where = f"event {first_bad}: " if first_bad is not None else ""
    return LogDamagedError(f"{where}{what}", first_bad=first_bad, events=walk.position, head=walk.head)


def missing_log(folder: Path) -> bool:
    """No log yet, and no trace of one.

    Raises `LogDamagedError` if events.db is gone but its companions are there.
    """
    if (folder / NAME).exists() or (folder / NAME).is_symlink():
        return False
    for name in (f"{NAME}-wal", CHECKPOINT_NAME):
        if (folder / name).exists():
            raise LogDamagedError(
                f"{folder} holds {name} but no {NAME}: put the file back, or remove {name} to begin a new log",
                first_bad=1,
            )
    return True
