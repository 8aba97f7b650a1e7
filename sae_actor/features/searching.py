"""One page of features, by words, sorted."""

from __future__ import annotations

import re
import sqlite3
from typing import Any, NamedTuple

_WORD = re.compile(r"\w+")
_ORDER = {
    "index": ("id",),
    "density": ("density IS NULL", "-density", "id"),
    "max": ("max IS NULL", "-max", "id"),
    "label": ("label IS NULL", "folded", "id"),
}
_MATCHES = "id IN (SELECT rowid FROM words WHERE words MATCH :words AND rowid BETWEEN :low AND :high)"
_CONTAINS = "(instr(lower(coalesce(label, '')), :part) OR instr(lower(top_tokens), :part))"


class PageQuery(NamedTuple):
    ids: tuple[int, int]
    q: str
    sort: str
    limit: int
    after: int | None


def page(db: sqlite3.Connection, asked: PageQuery) -> tuple[list[tuple[Any, ...]], int]:
    """Rows (id, label, density, max, top tokens as JSON), and how many there are on all pages."""
    low, high = asked.ids
    given: dict[str, Any] = {"low": low, "high": high, "limit": asked.limit}
    where = "id BETWEEN :low AND :high"
    words = _WORD.findall(asked.q)
    if words:
        given["words"] = " ".join(f'"{word}"*' for word in words)
        where = _MATCHES
        count = "SELECT count(*) FROM words WHERE words MATCH :words AND rowid BETWEEN :low AND :high"
    else:
        if asked.q.strip():
            # Signs alone, which are no words: looked for as they are.
            given["part"] = asked.q.strip().lower()
            where += f" AND {_CONTAINS}"
        count = f"SELECT count(*) FROM shown WHERE {where}"
    total: int = db.execute(count, given).fetchone()[0]
    order = _ORDER[asked.sort]
    if asked.after is not None:
        given["after"] = low + asked.after
        where += _beyond(db, order, given)
    rows = db.execute(
        f"SELECT id, label, density, max, top_tokens FROM shown WHERE {where} ORDER BY {', '.join(order)} LIMIT :limit",
        given,
    )
    return rows.fetchall(), total


def _beyond(db: sqlite3.Connection, order: tuple[str, ...], given: dict[str, Any]) -> str:
    """The condition for rows after the row `after`; by index it need not be there."""
    if len(order) == 1:
        return " AND id > :after"
    found = db.execute(f"SELECT {order[0]}, coalesce({order[1]}, 0) FROM shown WHERE id = :after", given).fetchone()
    if found is None:
        return " AND 0"
    given["missing"], given["value"] = found
    return f" AND ({order[0]}, coalesce({order[1]}, 0), id) > (:missing, :value, :after)"
