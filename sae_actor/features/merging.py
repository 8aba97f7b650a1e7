"""Entries of a source into the tables, and of several sources what is shown of each feature.

The label of the later import counts; of one source's the best scored, else the newest. Of statistics each number is the
latest that is known.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import structs

from .lines import TOP, Entry, Labelled, Measured, Seen
from .tables import SHIFT

EXAMPLES = 20
"""That are kept of a feature, from each source."""
BATCH = 1000
_MEASURED = msgspec.json.Decoder(Measured)
_FIELDS = [name for name in Measured.__struct_fields__ if name != "feature"]


def insert(db: sqlite3.Connection, source: int, found: Iterable[Entry]) -> set[int]:
    """Store the entries of a source; the features that they are about."""
    touched: set[int] = set()
    labels: list[tuple[object, ...]] = []
    statistics: list[tuple[object, ...]] = []
    examples: list[tuple[object, ...]] = []

    def flush() -> None:
        db.executemany("INSERT INTO labels VALUES(?, ?, ?, ?, ?, ?)", labels)
        db.executemany("INSERT INTO statistics VALUES(?, ?, ?, ?)", statistics)
        db.executemany("INSERT INTO examples VALUES(?, ?, ?, ?, ?, ?)", examples)
        for rows in (labels, statistics, examples):
            rows.clear()

    for line, entry in enumerate(found):
        touched.add(entry.feature)
        at = (source, entry.feature, line)
        match entry:
            case Labelled():
                labels.append((*at, entry.label, entry.score, entry.created))
            case Measured():
                statistics.append((*at, msgspec.json.encode(entry)))
            case Seen():
                examples.append((*at, entry.max, entry.top_token, msgspec.json.encode(entry)))
        if line % BATCH == BATCH - 1:
            flush()
    flush()
    ranked = (
        "SELECT feature, line, row_number() OVER (PARTITION BY feature ORDER BY max DESC, line) AS rank "
        "FROM examples WHERE source = ?1"
    )
    db.execute(
        "DELETE FROM examples WHERE source = ?1 AND (feature, line) IN "
        f"(SELECT feature, line FROM ({ranked}) WHERE rank > {EXAMPLES})",
        (source,),
    )
    return touched


def remove(db: sqlite3.Connection, source: int) -> set[int]:
    """Remove a source; the features that it was about."""
    touched: set[int] = set()
    for table in ("labels", "statistics", "examples"):
        touched.update(
            row[0] for row in db.execute(f"SELECT DISTINCT feature FROM {table} WHERE source = ?", (source,))
        )
        db.execute(f"DELETE FROM {table} WHERE source = ?", (source,))
    db.execute("DELETE FROM sources WHERE id = ?", (source,))
    return touched


def show(db: sqlite3.Connection, sae: int, touched: Iterable[int]) -> None:
    """Work out again what is shown of these features of the SAE with this number."""
    ids = [(feature,) for feature in sorted(touched)]
    db.execute("CREATE TEMP TABLE IF NOT EXISTS touched(feature INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM touched")
    db.executemany("INSERT INTO touched VALUES(?)", ids)
    labels: dict[int, str] = dict(
        db.execute(f"SELECT feature, label {_of('labels')} ORDER BY s.position, s.id, score, created, line", (sae,))
    )
    known: dict[int, Measured] = {}
    query = f"SELECT feature, data {_of('statistics')} ORDER BY s.position, s.id, line"
    for feature, data in db.execute(query, (sae,)):
        known[feature] = merged(known.get(feature), _MEASURED.decode(data))
    seen: dict[int, list[tuple[str, float]]] = {}
    for feature, top, value in db.execute(f"SELECT feature, top, max {_of('examples')} ORDER BY max DESC", (sae,)):
        tokens = seen.setdefault(feature, [])
        if len(tokens) < TOP and top not in (token for token, _ in tokens):
            tokens.append((top, value))
    db.executemany("DELETE FROM shown WHERE id = ?", [(sae << SHIFT | each,) for (each,) in ids])
    db.executemany("DELETE FROM words WHERE rowid = ?", [(sae << SHIFT | each,) for (each,) in ids])
    rows = list(_rows(sae, labels, known, seen))
    db.executemany("INSERT INTO shown VALUES(?, ?, ?, ?, ?, ?)", rows)
    db.executemany(
        "INSERT INTO words(rowid, label, top_tokens) VALUES(?, ?, ?)",
        [(row[0], row[1] or "", " ".join(msgspec.json.decode(str(row[5])))) for row in rows],
    )


def merged(before: Measured | None, later: Measured) -> Measured:
    """What both say; the later one counts."""
    if before is None:
        return later
    said = {name: value for name in _FIELDS if (value := getattr(later, name)) not in (None, ())}
    return structs.replace(before, **said)


def _of(table: str) -> str:
    return f"FROM sources s JOIN {table} t ON t.source = s.id JOIN touched USING(feature) WHERE s.sae = ?"


def _rows(
    sae: int, labels: dict[int, str], known: dict[int, Measured], seen: dict[int, list[tuple[str, float]]]
) -> Iterator[Sequence[object]]:
    for feature in sorted({*labels, *known, *seen}):
        label, measured, tokens = labels.get(feature), known.get(feature, Measured()), seen.get(feature, [])
        largest = measured.max if measured.max is not None or not tokens else tokens[0][1]
        top = measured.top_tokens or tuple(token for token, _ in tokens) or measured.promoted
        text = msgspec.json.encode(top).decode()
        yield (
            sae << SHIFT | feature,
            label,
            None if label is None else label.casefold(),
            measured.density,
            largest,
            text,
        )
