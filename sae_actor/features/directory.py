"""`FeatureDirectory`: labels and statistics of features in `features.db`, to be searched.

Plain blocking calls, from any thread: one connection writes, another one reads meanwhile.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ..domain.refs import SaeId
from ..domain.state import LabelFile
from .lines import TOP, Entry, Measured, Seen
from .merging import EXAMPLES, insert, merged, remove, show
from .searching import PageQuery, page
from .tables import NAME, SHIFT, copied, open_reader, open_writer

Sort: TypeAlias = Literal["index", "density", "max", "label"]

OWN, PROFILE = "@folder", "@profile"
"""Sources that are nobody's import: the SAE's own folder, and what a run has measured here."""
LATEST = 2**60
"""The position of what was measured here: it counts more than any import."""


class FeatureRow(Struct, frozen=True, kw_only=True):
    feature: int
    label: str | None
    density: float | None
    max: float | None
    top_tokens: tuple[str, ...]
    """Those that it fired on most; where nobody says, those that it promotes."""


class FeaturePage(Struct, frozen=True, kw_only=True):
    features: tuple[FeatureRow, ...]
    total: int


class FeatureLabel(Struct, frozen=True, kw_only=True):
    feature: int
    label: str
    source: str


class Example(Struct, frozen=True, kw_only=True):
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class KnownFeature(Struct, frozen=True, kw_only=True):
    """All that is known of a feature."""

    label: str | None = None
    labels: tuple[FeatureLabel, ...] = ()
    """Of every source, the one that counts first."""
    statistics: Measured = Measured()
    top_tokens: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    """Largest activation first."""


class FeatureDirectory:
    """`features.db` in a data folder. read_only: as it lies, in memory, and no file is written."""

    def __init__(self, folder: Path | None, *, read_only: bool = False) -> None:
        path = None if folder is None else folder / NAME
        self._db = copied(path) if read_only and path is not None else open_writer(path)
        self._writing = threading.Lock()
        shared = read_only or path is None
        self._read_db = self._db if shared else open_reader(path)  # type: ignore[arg-type]
        self._reading = self._writing if shared else threading.Lock()

    def close(self) -> None:
        with self._writing:
            if self._read_db is not self._db:
                with self._reading:
                    self._read_db.close()
            self._db.close()

    # — writing —

    def sources(self, sae_id: str) -> dict[str, tuple[str, int]]:
        """Source → digest (of a profile its run) and position of what is in the tables."""
        query = "SELECT source, sha256, position FROM sources JOIN saes ON number = sae WHERE sae_id = ?"
        with self._reader() as db:
            return {source: (sha256, position) for source, sha256, position in db.execute(query, (sae_id,))}

    def replace(self, sae_id: str, source: str, sha256: str, position: int, found: Iterable[Entry]) -> None:
        """The entries of a source, in place of those before."""
        with self._transaction() as db:
            sae = _number(db, sae_id)
            old = db.execute("SELECT id FROM sources WHERE sae = ? AND source = ?", (sae, source)).fetchone()
            touched = set[int]() if old is None else remove(db, old[0])
            row = db.execute(
                "INSERT INTO sources(sae, source, sha256, position) VALUES(?, ?, ?, ?)", (sae, source, sha256, position)
            )
            touched |= insert(db, int(row.lastrowid or 0), found)
            show(db, sae, touched)

    def put_statistics(self, sae_id: str, rows: Iterable[Mapping[str, Any]], run_id: str = "") -> None:
        """What a run `profile` measured: its rows, in place of those of an earlier one.

        A row has `feature`, `density`, `max` and `examples`, each with `tokens` and `activations`; the rest of it is
        passed over. They are not in `labels/`: where `features.db` is lost, the rows of the run give them again.
        """
        self.replace(sae_id, PROFILE, run_id, LATEST, _profiled(rows))

    def drop(self, sae_id: str, source: str) -> None:
        """Remove a source; nothing happens if it is not there."""
        with self._transaction() as db:
            sae = _number(db, sae_id)
            old = db.execute("SELECT id FROM sources WHERE sae = ? AND source = ?", (sae, source)).fetchone()
            if old is not None:
                show(db, sae, remove(db, old[0]))

    def keep_only(self, sae_ids: Collection[str]) -> None:
        """Remove everything of other SAEs."""
        with self._transaction() as db:
            for number, sae_id in db.execute("SELECT number, sae_id FROM saes").fetchall():
                if sae_id in sae_ids:
                    continue
                for (source,) in db.execute("SELECT id FROM sources WHERE sae = ?", (number,)).fetchall():
                    remove(db, source)
                db.execute("DELETE FROM shown WHERE id BETWEEN ? AND ?", _ids(number))
                db.execute("DELETE FROM words WHERE rowid BETWEEN ? AND ?", _ids(number))
                db.execute("DELETE FROM saes WHERE number = ?", (number,))

    # — reading —

    def labels(self, sae_id: str) -> dict[int, str]:
        """Feature → the label that counts."""
        with self._reader() as db:
            sae = _known(db, sae_id)
            query = "SELECT id - ?, label FROM shown WHERE id BETWEEN ? AND ? AND label IS NOT NULL"
            return {} if sae is None else dict(db.execute(query, (sae << SHIFT, *_ids(sae))))

    def search(
        self, sae_id: str, q: str = "", *, sort: Sort = "index", limit: int = 50, after: int | None = None
    ) -> FeaturePage:
        """Features of which something is known. q: words (or beginnings of words) of the label and the top tokens.
        after: the last feature of the page before."""
        with self._reader() as db:
            sae = _known(db, sae_id)
            if sae is None:
                return FeaturePage(features=(), total=0)
            rows, total = page(db, PageQuery(_ids(sae), q, sort, limit, after))
        made = (
            FeatureRow(
                feature=id_ - (sae << SHIFT),
                label=label,
                density=density,
                max=largest,
                top_tokens=msgspec.json.decode(top, type=tuple[str, ...]),
            )
            for id_, label, density, largest, top in rows
        )
        return FeaturePage(features=tuple(made), total=total)

    def feature(self, sae_id: str, feature: int) -> KnownFeature:
        with self._reader() as db:
            sae = _known(db, sae_id)
            if sae is None:
                return KnownFeature()
            said = [
                FeatureLabel(feature=feature, label=label, source=source)
                for label, source in db.execute(
                    "SELECT label, s.source FROM sources s JOIN labels t ON t.source = s.id"
                    " WHERE s.sae = ? AND feature = ?"
                    " ORDER BY s.position DESC, s.id DESC, score DESC, created DESC, line DESC",
                    (sae, feature),
                )
            ]
            measured = Measured()
            for (data,) in db.execute(
                "SELECT data FROM sources s JOIN statistics t ON t.source = s.id WHERE s.sae = ? AND feature = ?"
                " ORDER BY s.position, s.id, line",
                (sae, feature),
            ):
                measured = merged(measured, msgspec.json.decode(data, type=Measured))
            seen = [
                msgspec.json.decode(data, type=Seen)
                for (data,) in db.execute(
                    "SELECT data FROM sources s JOIN examples t ON t.source = s.id WHERE s.sae = ? AND feature = ?"
                    " ORDER BY s.position DESC, max DESC, line LIMIT ?",
                    (sae, feature, EXAMPLES),
                )
            ]
            shown = db.execute("SELECT top_tokens, max FROM shown WHERE id = ?", (sae << SHIFT | feature,)).fetchone()
        top, largest = ((), None) if shown is None else (msgspec.json.decode(shown[0], type=tuple[str, ...]), shown[1])
        return KnownFeature(
            label=said[0].label if said else None,
            labels=tuple(said),
            statistics=msgspec.structs.replace(measured, max=largest),
            top_tokens=top,
            examples=tuple(Example(tokens=each.tokens, activations=each.activations) for each in seen),
        )

    def exported(self, sae_id: str, source: str | None = None) -> Iterator[list[FeatureLabel]]:
        """All labels of imports, or those of one source, in pages. Imported again they come to the same."""
        after = (-1, 0, -1)
        query = (
            "SELECT feature, s.id, line, label, s.source FROM sources s JOIN labels t ON t.source = s.id "
            "JOIN saes ON number = sae WHERE sae_id = ?1 AND s.source NOT LIKE '@%' AND (?2 IS NULL OR s.source = ?2) "
            "AND (feature, s.id, line) > (?3, ?4, ?5) ORDER BY feature, s.id, line LIMIT 5000"
        )
        while True:
            with self._reader() as db:
                rows = db.execute(query, (sae_id, source, *after)).fetchall()
            if not rows:
                return
            after = rows[-1][:3]
            yield [FeatureLabel(feature=row[0], label=row[3], source=row[4]) for row in rows]

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._reading:
            yield self._read_db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def outdated(wanted: Iterable[LabelFile], there: Mapping[str, tuple[str, int]]) -> tuple[list[LabelFile], list[str]]:
    """The sources to read again, and those to drop, so that the tables have what the log says."""
    files = {each.source: each for each in wanted}
    missing = [each for each in files.values() if there.get(each.source) != (each.sha256, each.position)]
    return missing, [source for source in there if source not in files and not source.startswith("@")]


def _number(db: sqlite3.Connection, sae_id: SaeId) -> int:
    found = _known(db, sae_id)
    return (
        found if found is not None else int(db.execute("INSERT INTO saes(sae_id) VALUES(?)", (sae_id,)).lastrowid or 0)
    )


def _known(db: sqlite3.Connection, sae_id: str) -> int | None:
    row = db.execute("SELECT number FROM saes WHERE sae_id = ?", (sae_id,)).fetchone()
    return None if row is None else row[0]


def _ids(sae: int) -> tuple[int, int]:
    return sae << SHIFT, (sae + 1 << SHIFT) - 1


def _profiled(rows: Iterable[Mapping[str, Any]]) -> Iterator[Entry]:
    for row in rows:
        feature = int(row["feature"])
        seen = [
            Seen(feature, tuple(each["tokens"]), tuple(each["activations"]))
            for each in row.get("examples") or ()
            if len(each["tokens"]) == len(each["activations"])
        ]
        top = tuple(dict.fromkeys(each.top_token for each in sorted(seen, key=lambda each: -each.max)))[:TOP]
        yield Measured(feature, row.get("density"), row.get("max"), top)
        yield from seen
