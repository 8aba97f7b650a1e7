"""`runs/` in the data folder.

    RUN_ID.db           a run: its texts, rows, and the sums of the groups that are done
    texts/TEXTS_ID.db   uploaded texts
    incoming/           an upload on its way

Each is an SQLite database with a write-ahead log and `synchronous=FULL`: what was committed is durable. A backup copies
them with `RunFolder.copied`, also while a run writes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import DiskFullError, InternalError, RunNotFoundError, TextsNotFoundError
from ..eventlog.schema import prepare_reader, read_only_uri
from ..ports.durability import disk_failure, fsync_path, is_full, private_folder
from .lists import Digest, Item, decoded

APPLICATION_ID = int.from_bytes(b"SAEr")
_SCHEMA = """
CREATE TABLE texts (list TEXT NOT NULL, number INTEGER NOT NULL, line BLOB NOT NULL, PRIMARY KEY (list, number)) STRICT;
CREATE TABLE rows (number INTEGER PRIMARY KEY, line BLOB NOT NULL) STRICT;
CREATE TABLE groups (number INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE kept (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
"""
PAGE = 500
KEY = ("prompt", "variant", "seed")
"""What is left of the row of a text that is erased."""


class TextList(Struct, frozen=True):
    """What a list of texts came to."""

    count: int
    sha256: str

    @property
    def texts_id(self) -> str:
        return f"texts-{self.sha256[:16]}"


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if is_full(error) or "disk I/O" in text:
            raise DiskFullError("the disk is full (writing a run)") from None
        raise InternalError(f"the file of a run cannot be used: {text[:200]}") from None
    except OSError as error:
        raise disk_failure(error, "Texts and rows cannot be written") from None


def _connected(path: Path, *, new: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        if new:
            path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        if new:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
        return _checked(connection, path)
    except BaseException:
        connection.close()
        raise


def _reading(path: Path) -> sqlite3.Connection:
    """Nothing is written, and no file is made."""
    uri = read_only_uri(path)
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        prepare_reader(connection)
        return _checked(connection, path)
    except BaseException:
        connection.close()
        raise


def _checked(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise InternalError(f"{path.name} is not a file of runs")
    return connection


class RunFile:
    """One database. Blocks: for a worker thread, one call at a time."""

    def __init__(self, path: Path, *, new: bool = False, read_only: bool = False) -> None:
        with _guarded():
            self._connection = _reading(path) if read_only else _connected(path, new=new)

    def close(self) -> None:
        self._connection.close()

    def add_texts(self, name: str, items: Iterable[Item]) -> TextList:
        """Write a list of texts, in one transaction."""
        digest = Digest()
        with _guarded(), self._transaction():
            rows = ((name, number, line) for number, line in enumerate(digest.through(items)))
            self._connection.executemany("INSERT INTO texts VALUES (?, ?, ?)", rows)
        return TextList(digest.count, digest.sha256)

    def texts(self, name: str, first: int, count: int) -> list[Item]:
        """Texts `first` … of a list, counted from 0."""
        with _guarded():
            found = self._connection.execute(
                "SELECT line FROM texts WHERE list = ? AND number >= ? AND number < ? ORDER BY number",
                (name, first, first + count),
            ).fetchall()
        return [decoded(line) for (line,) in found]

    def all_texts(self, name: str) -> Iterator[Item]:
        at = 0
        while page := self.texts(name, at, PAGE):
            yield from page
            at += len(page)

    def described(self, name: str) -> TextList:
        digest = Digest()
        for _ in digest.through(self.all_texts(name)):
            pass
        return TextList(digest.count, digest.sha256)

    def progress(self) -> int:
        """How many steps are durable: rows and groups."""
        with _guarded():
            found = self._connection.execute("SELECT (SELECT count(*) FROM rows) + (SELECT count(*) FROM groups)")
            return int(found.fetchone()[0])

    def count(self, table: str = "rows") -> int:
        with _guarded():
            return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def commit(
        self, *, rows: Sequence[Mapping[str, Any]] = (), group: bytes | None = None, kept: Mapping[str, bytes] = {}
    ) -> None:
        """Append rows and a group, and keep values, in one transaction: durable when this returns."""
        with _guarded(), self._transaction():
            lines = [(msgspec.json.encode(row),) for row in rows]
            self._connection.executemany("INSERT INTO rows (line) VALUES (?)", lines)
            if group is not None:
                self._connection.execute("INSERT INTO groups (data) VALUES (?)", (group,))
            for name, data in kept.items():
                self._connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, data))

    def kept(self, name: str) -> bytes | None:
        with _guarded():
            found = self._connection.execute("SELECT data FROM kept WHERE name = ?", (name,)).fetchone()
        return None if found is None else bytes(found[0])

    def kept_like(self, beginning: str) -> dict[str, bytes]:
        with _guarded():
            found = self._connection.execute("SELECT name, data FROM kept ORDER BY name").fetchall()
        return {name: data for name, data in found if name.startswith(beginning)}

    def groups(self) -> Iterator[bytes]:
        with _guarded():
            for number in range(1, self.count("groups") + 1):
                yield self._connection.execute("SELECT data FROM groups WHERE number = ?", (number,)).fetchone()[0]

    def rows(self, after: int, limit: int = PAGE) -> list[tuple[int, bytes]]:
        """Number and line of at most `limit` rows after row `after`, counted from 1."""
        with _guarded():
            return self._connection.execute(
                "SELECT number, line FROM rows WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
            ).fetchall()

    def forget(self, generation_id: str) -> None:
        """Erase the row of a text; its place stays, so that it is not made again."""
        with _guarded(), self._transaction():
            found = self._connection.execute(
                "SELECT number, line FROM rows WHERE instr(line, ?)", (f'"generation_id":"{generation_id}"'.encode(),)
            ).fetchall()
            for number, line in found:
                row = msgspec.json.decode(line)
                left = msgspec.json.encode({**{name: row[name] for name in KEY}, "redacted": True})
                self._connection.execute("UPDATE rows SET line = ? WHERE number = ?", (left, number))
        if found:
            with _guarded():
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def all_rows(self, after: int = 0) -> Iterator[dict[str, Any]]:
        while page := self.rows(after):
            after = page[-1][0]
            yield from (msgspec.json.decode(line) for _, line in page)

    def rows_sha256(self) -> str:
        digest, at = hashlib.sha256(), 0
        while page := self.rows(at):
            for _, line in page:
                digest.update(line + b"\n")
            at = page[-1][0]
        return digest.hexdigest()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


class RunFolder:
    """All of `runs/`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """read_only: of a service that changes no file."""
        self.folder = folder
        self._read_only = read_only
        self.incoming = folder / "incoming"
        self._texts = folder / "texts"

    def sweep(self, known: Iterable[str]) -> None:
        """Remove what no run has: of a request that was not accepted, of a run whose deletion was cut off."""
        if not self.folder.is_dir():
            return
        shutil.rmtree(self.incoming, ignore_errors=True)
        names = {f"{run_id}.db" for run_id in known}
        for path in self.folder.glob("*.db"):
            if path.name not in names:
                _remove(path)

    def path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.db"

    def create(self, run_id: str) -> RunFile:
        with _guarded():
            private_folder(self.folder)
            return RunFile(self.path(run_id), new=True)

    def open(self, run_id: str) -> RunFile:
        path = self.path(run_id)
        if not path.is_file():
            raise RunNotFoundError(f"the texts and rows of {run_id} are not there", run_id=run_id)
        return RunFile(path, read_only=self._read_only)

    def progress(self, run_ids: Iterable[str]) -> dict[str, int]:
        """Run → how many of its steps are durable; 0 without its file."""
        found = {}
        for run_id in run_ids:
            if not self.path(run_id).is_file():
                found[run_id] = 0
                continue
            with closing(self.open(run_id)) as file:
                found[run_id] = file.progress()
        return found

    def erase(self, run_id: str) -> None:
        _remove(self.path(run_id))

    def forget_generation(self, generation_id: str) -> None:
        """Erase the row of a text in whatever run has it."""
        for path in sorted(self.folder.glob("*.db")):
            with closing(RunFile(path)) as file:
                file.forget(generation_id)

    # — uploads —

    def keep_texts(self, items: Iterable[Item], name: str) -> TextList:
        """Keep uploaded texts; the same ones are kept once."""
        with _guarded():
            for folder in (self._texts, self.incoming):
                private_folder(folder)
            coming = self.incoming / f"{name}.db"
            try:
                with closing(RunFile(coming, new=True)) as file:
                    found = file.add_texts("texts", items)
                final = self._texts / f"{found.texts_id}.db"
                if not final.exists():
                    coming.replace(final)
                    fsync_path(self._texts)
            finally:
                _remove(coming)
        return found

    def open_texts(self, texts_id: str) -> RunFile:
        path = self._texts / f"{texts_id}.db"
        if not re.fullmatch(r"texts-[0-9a-f]{16}", texts_id) or not path.is_file():
            raise TextsNotFoundError(f"there are no texts {texts_id[:80]}", texts_id=texts_id[:80])
        return RunFile(path, read_only=self._read_only)

    def forget_texts(self, texts_id: str) -> None:
        self.open_texts(texts_id).close()
        _remove(self._texts / f"{texts_id}.db")


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if path.parent.is_dir():
        fsync_path(path.parent)
