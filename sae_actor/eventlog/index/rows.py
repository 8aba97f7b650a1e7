"""The connection to `index.db`, and the numbers of names in it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .tables import DAMAGE, UnfitIndexError

T = TypeVar("T")

TYPE, SAE, PRINCIPAL, TAG = range(1, 5)
"""Kinds of names."""
ANY = 0
"""Under this SAE every event is listed."""
MOST_NAMES = 10_000
"""Held in memory: tags can be as many as answers."""


class IndexRows:
    """One connection, used by one thread at a time."""

    def __init__(self) -> None:
        self.trusted = False
        """Its rows have been checked, and it is of the log at hand."""
        self.wrong = False
        """It said what is not so."""
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._names: dict[tuple[int, str], int] = {}

    def distrust(self) -> None:
        """What it said was not so, or could not be read."""
        self.trusted, self.wrong = False, True

    def _ask(self, question: Callable[[], T]) -> T:
        """Raises `UnfitIndexError`, from where on it is not trusted."""
        with self._lock:
            if not self.trusted:
                raise UnfitIndexError("it is not to be used")
            try:
                return question()
            except DAMAGE as error:
                self.distrust()
                raise UnfitIndexError(str(error)) from None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise UnfitIndexError("it is closed")
        return self._db

    def _all(self, query: str, *given: object) -> list[tuple[Any, ...]]:
        return self._connection().execute(query, given).fetchall()

    def _one(self, query: str, *given: object) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._connection().execute(query, given).fetchone()
        return found

    def _known(self, kind: int, name: str) -> int | None:
        """The number of a name."""
        if (kind, name) not in self._names:
            found = self._one("SELECT id FROM names WHERE kind = ? AND name = ?", kind, name)
            if found is None:
                return None
            self._remember(kind, name, found[0])
        return self._names[kind, name]

    def _remember(self, kind: int, name: str, number: int) -> None:
        if len(self._names) > MOST_NAMES:
            self._names.clear()
        self._names[kind, name] = number

    def _named(self, kind: int) -> list[tuple[Any, ...]]:
        return self._all("SELECT name, id FROM names WHERE kind = ?", kind)
