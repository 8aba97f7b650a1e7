"""`IndexDatabase`: the file. Its calls block, and are for worker threads."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...domain.events import Event
from ...ports import Head
from . import tables
from .entries import Entry, entry_of
from .questions import Questions
from .rows import ANY, PRINCIPAL, SAE, TAG, TYPE
from .tables import BLOCK, DAMAGE, NOTHING, IndexHead, UnfitIndexError

logger = logging.getLogger(__name__)


class IndexDatabase(Questions):
    """`index.db` at a path; None: one of this process alone.

    read_only: as it lies, and no file of the folder is made or changed. Once `trusted`, questions are answered as far
    as `head` goes.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        super().__init__()
        self.path = path
        self._read_only = read_only
        self._about = NOTHING
        self._block = (-1, "")
        """Number and earliest time of the last block."""
        try:
            self._open()
        except (*DAMAGE, OSError) as error:
            self.make_anew("" if read_only else str(error))

    @property
    def usable(self) -> bool:
        return self._db is not None

    @property
    def writable(self) -> bool:
        return self.usable and not self._read_only

    @property
    def log_id(self) -> str:
        """Of the log that it is of; empty while there is nothing in it."""
        return self._about.log_id

    @property
    def head(self) -> Head:
        """The last event that is in it."""
        return Head(self._about.position, self._about.hash)

    def close(self) -> None:
        """Does not wait for a check of many rows."""
        if (checking := self._db) is not None:
            checking.interrupt()
        with self._lock:
            self.trusted = self.wrong = False
            if self._db is not None:
                with suppress(sqlite3.Error):
                    self._db.execute("SELECT 1").fetchall()  # else, still interrupted, it would not fold its WAL
                self._db.close()
                self._db = None

    def make_anew(self, why: str = "") -> None:
        """Throw away what is there; in place of a file that is only to be read make one of this process alone. Without
        a disk to write to there is no index: `usable` says so."""
        with self._lock:
            if self._read_only:
                self.path, self._read_only = None, False
            if why:
                logger.warning("%s is made again: %s", tables.NAME, why)
            self.close()
            try:
                if self.path is not None:
                    tables.remove(self.path)
                self._open()
            except (*DAMAGE, OSError) as error:
                logger.warning("there is no %s: %s", tables.NAME, error)

    def check(self) -> bool:
        """Whether all of it is what was written."""
        with self._lock:
            try:
                tables.check(self._connection())
            except DAMAGE as error:
                logger.warning("%s is damaged: %s", tables.NAME, error)
                return False
        return True

    def _open(self) -> None:
        self._names, self._block, self._about = {}, (-1, ""), NOTHING
        if self._read_only and self.path is not None:
            if not self.path.is_file():
                raise UnfitIndexError("it is not there")
            self._db = tables.connect_reader(self.path)
        else:
            self._db = tables.connect(self.path)
        self._about = tables.read_about(self._db)

    # — entering —

    def enter(self, log_id: str, events: Sequence[Event], erased: Sequence[int] = ()) -> None:
        """The events that follow its head. erased: positions whose payload they erase. Raises `sqlite3.Error`."""
        entries = [entry_of(event) for event in events]
        with self._lock:
            if not entries or self._db is None or entries[0].position != self._about.position + 1:
                return
            head = Head(events[-1].position, events[-1].hash)
            with self._change(log_id, head) as sums:
                self._list(entries, sums)
                for entry in entries:
                    self._enter_generation(entry, sums)
                for position in erased:
                    self._erase(position, sums)
                self._enter_times(entries, sums)
            if erased:
                self._empty_wal()

    def erase(self, position: int) -> None:
        """What the payload at a position said, so that its bytes are in no file any more. Raises `sqlite3.Error`."""
        with self._lock:
            if self._db is None or position > self._about.position:
                return
            with self._change(self._about.log_id, self.head) as sums:
                self._erase(position, sums)
            self._empty_wal()

    def _empty_wal(self) -> None:
        """It still holds what was erased."""
        self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _change(self, log_id: str, head: Head) -> Iterator[dict[str, int]]:
        connection, sums = self._connection(), dict(self._about.sums)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield sums
            about = IndexHead(log_id, head.position, head.hash, sums)
            connection.execute("UPDATE about SET data = ?", (about.encoded(),))
            connection.execute("COMMIT")
            self._about = about
        except BaseException:
            self._names.clear()
            self._block = (-1, "")
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _list(self, entries: Iterable[Entry], sums: dict[str, int]) -> None:
        rows, turns = [], []
        for entry in entries:
            type_ = self._name(TYPE, entry.type, sums)
            saes = [self._name(SAE, sae_id, sums) for sae_id in entry.sae_ids]
            rows += [(sae, type_, entry.position) for sae in (ANY, *saes)]
            if entry.turns:
                turns.append((entry.position,))
        self._connection().executemany("INSERT INTO listed VALUES (?, ?, ?)", rows)
        self._connection().executemany("INSERT INTO turns VALUES (?)", turns)
        sums["listed"] += sum(tables.of_listed(*row) for row in rows)
        sums["turns"] += sum(tables.of_turn(*row) for row in turns)

    def _enter_generation(self, entry: Entry, sums: dict[str, int]) -> None:
        if entry.began is not None:
            tag = None if entry.began.tag is None else self._name(TAG, entry.began.tag, sums)
            key, principal = entry.began.key, self._name(PRINCIPAL, entry.principal, sums)
            row = (entry.position, None, key, principal, tag, int(key is not None))
            self._connection().execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?)", row)
            sums["generations"] += tables.of_generation(row)
        if entry.ended is not None:
            began = self._generation(entry.ended.started_position)
            if began is not None and began[1] is None and began[2] in (None, entry.ended.key):
                self._replace(began, (began[0], entry.position, entry.ended.key, *began[3:]), sums)

    def _enter_times(self, entries: Sequence[Entry], sums: dict[str, int]) -> None:
        for entry in entries:
            number = (entry.position - 1) // BLOCK
            if number != self._block[0]:
                self._write_block(sums)
                found = self._one("SELECT earliest FROM blocks WHERE number = ?", number)
                self._block = (number, entry.time if found is None else found[0])
            self._block = (number, min(self._block[1], entry.time))
        self._write_block(sums)

    def _write_block(self, sums: dict[str, int]) -> None:
        number, earliest = self._block
        if number < 0:
            return
        found = self._one("SELECT earliest FROM blocks WHERE number = ?", number)
        sums["blocks"] += tables.of_text(number, 0, earliest) - (tables.of_text(number, 0, found[0]) if found else 0)
        self._connection().execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", self._block)

    def _erase(self, position: int, sums: dict[str, int]) -> None:
        """As if the payload at a position had never been read."""
        connection = self._connection()
        for name, sae in self._named(SAE):
            rows = self._all("SELECT type FROM listed WHERE sae = ? AND type IN (SELECT id FROM names WHERE kind = ?)"
                             " AND position = ?", sae, TYPE, position)  # fmt: skip
            for (type_,) in rows:
                where = (sae, type_, position)
                connection.execute("DELETE FROM listed WHERE sae = ? AND type = ? AND position = ?", where)
                sums["listed"] -= tables.of_listed(*where)
            if rows and self._one("SELECT 1 FROM listed WHERE sae = ? LIMIT 1", sae) is None:
                self._forget(SAE, name, sae, sums)
        row = self._generation(position)
        if row is not None:  # a beginning: the readable end alone still names it
            self._replace(row, (row[0], row[1], row[2] if row[1] else None, row[3], None, 0), sums)
            if row[4] is not None and self._one("SELECT 1 FROM generations WHERE tag = ? LIMIT 1", row[4]) is None:
                ((name,),) = self._all("SELECT name FROM names WHERE id = ?", row[4])
                self._forget(TAG, name, row[4], sums)
        for row in self._all("SELECT * FROM generations WHERE ended = ?", position):  # an end
            self._replace(row, (row[0], None, row[2] if row[5] else None, *row[3:]), sums)

    def _generation(self, began: int) -> tuple[Any, ...] | None:
        return self._one("SELECT * FROM generations WHERE began = ?", began)

    def _replace(self, before: tuple[Any, ...], after: tuple[Any, ...], sums: dict[str, int]) -> None:
        query = "UPDATE generations SET ended = ?, key = ?, principal = ?, tag = ?, readable = ? WHERE began = ?"
        self._connection().execute(query, (*after[1:], after[0]))
        sums["generations"] += tables.of_generation(after) - tables.of_generation(before)

    # — names —

    def _name(self, kind: int, name: str, sums: dict[str, int]) -> int:
        """The number of a name, given it now if it has none."""
        found = self._known(kind, name)
        if found is None:
            row = self._connection().execute("INSERT INTO names (kind, name) VALUES (?, ?)", (kind, name))
            found = row.lastrowid or 0
            sums["names"] += tables.of_text(found, kind, name)
            self._remember(kind, name, found)
        return found

    def _forget(self, kind: int, name: str, number: int, sums: dict[str, int]) -> None:
        self._connection().execute("DELETE FROM names WHERE id = ?", (number,))
        self._names.pop((kind, name), None)
        sums["names"] -= tables.of_text(number, kind, name)
