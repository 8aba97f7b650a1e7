"""What `index.db` is asked. Each question raises `UnfitIndexError` where it cannot be answered."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ...domain.views.provenance import SET_ANEW
from .rows import ANY, PRINCIPAL, SAE, TAG, TYPE, IndexRows
from .tables import BLOCK


class TextPlace(NamedTuple):
    """Where a generation is."""

    began: int
    ended: int | None
    key: int | None


class Questions(IndexRows):
    def positions(
        self, types: Iterable[str] | None, sae_id: str | None, after: int, until: int, limit: int
    ) -> list[int]:
        """The first events in (after, until] of these types that name this SAE."""

        def ask() -> list[int]:
            sae = ANY if sae_id is None else self._known(SAE, sae_id)
            kinds = [each for _, each in self._named(TYPE)] if types is None else [self._known(TYPE, t) for t in types]
            query = "SELECT position FROM listed WHERE sae = ? AND type = ? AND position > ? AND position <= ?"
            found = [
                position
                for kind in kinds
                if kind is not None and sae is not None
                for (position,) in self._all(f"{query} ORDER BY position LIMIT ?", sae, kind, after, until, limit)
            ]
            return sorted(found)[:limit]

        return self._ask(ask)

    def newest(self, kind: str, after: int, until: int, limit: int) -> list[int]:
        """The last events in (after, until] of a type, the newest first."""
        query = "SELECT position FROM listed WHERE sae = ? AND type = ? AND position > ? AND position <= ?"

        def ask() -> list[int]:
            type_ = self._known(TYPE, kind)
            rows = self._all(f"{query} ORDER BY position DESC LIMIT ?", ANY, type_, after, until, limit)
            return [position for (position,) in rows]

        return self._ask(ask)

    def texts(
        self,
        *,
        key: int | None = None,
        tag: str | None = None,
        principal: str | None = None,
        after: int = 0,
        limit: int,
    ) -> list[TextPlace]:
        """The first generations that began after `after`: with this key, tag, or principal."""

        def ask() -> list[TextPlace]:
            where, given = ["began > ?"], [after]
            for column, kind, name in (("tag", TAG, tag), ("principal", PRINCIPAL, principal)):
                if name is not None:
                    number = self._known(kind, name)
                    if number is None:
                        return []
                    where.append(f"{column} = ?")
                    given.append(number)
            if key is not None:
                where.append("key = ?")
                given.append(key)
            query = f"SELECT began, ended, key FROM generations WHERE {' AND '.join(where)} ORDER BY began LIMIT ?"
            return [TextPlace(*row) for row in self._all(query, *given, limit)]

        return self._ask(ask)

    def text(self, began: int) -> TextPlace | None:
        def ask() -> TextPlace | None:
            row = self._one("SELECT began, ended, key FROM generations WHERE began = ?", began)
            return None if row is None else TextPlace(*row)

        return self._ask(ask)

    def nameless(self) -> list[int]:
        """Beginnings that cannot be read and that no end names."""
        return self._ask(lambda: [at for (at,) in self._all("SELECT began FROM generations WHERE key IS NULL")])

    def turns(self, after: int, before: int, limit: int) -> list[int]:
        query = "SELECT position FROM turns WHERE position > ? AND position < ? ORDER BY position LIMIT ?"
        return self._ask(lambda: [at for (at,) in self._all(query, after, before, limit)])

    def since(self, after: int, before: int, limit: int, sae_ids: Collection[str]) -> tuple[list[int], list[int]]:
        """`turns`; where there are none, the last steering of each SAE in between."""

        def ask() -> tuple[list[int], list[int]]:
            turns = self.turns(after, before, limit)
            return turns, [] if turns else self.steered(sae_ids, (after, before))

        return self._ask(ask)

    def steered(self, sae_ids: Iterable[str], bounds: Sequence[int]) -> list[int]:
        """The last steering of each SAE between each two bounds."""

        def ask() -> list[int]:
            kind = self._known(TYPE, SET_ANEW)
            query = "SELECT max(position) FROM listed WHERE sae = ? AND type = ? AND position > ? AND position < ?"
            return [
                at
                for sae in [self._known(SAE, each) for each in sae_ids]
                if sae is not None and kind is not None
                for after, before in itertools.pairwise(bounds)
                if after + 1 < before
                for (at,) in self._all(query, sae, kind, after, before)
                if at is not None
            ]

        return self._ask(ask)

    def last_block_by(self, time: str) -> int | None:
        """The last block with an event of that time or before; its first position less one."""

        def ask() -> int | None:
            query = "SELECT number FROM blocks WHERE earliest <= ? ORDER BY number DESC LIMIT 1"
            row = self._one(query, time)
            return None if row is None else row[0] * BLOCK

        return self._ask(ask)
