"""The calls about the log: its events, its check, what it says of a moment or of an answer, all of it, its backup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from .wire import Answer, Wire

WALK_SECONDS = 600.0
"""Added to the timeout where the service reads, or copies, its whole log before it answers."""


class LogCalls:
    """One service's log."""

    _wire: Wire

    def state(self, at: int | str | None = None) -> Answer:
        """The state now, or as it was at position `at`, or at a time (RFC 3339)."""
        return self._get("/api/state", {"at": at}, wait=WALK_SECONDS)

    def log(self, after: int = 0, limit: int = 500, types: Iterable[str] = ()) -> Answer:
        """`{"events", "head"}`: at most `limit` events above `after`."""
        return self._get("/api/log", {"after": after, "limit": limit, "types": ",".join(types) or None})

    def log_lines(self, after: int = 0, types: Iterable[str] = ()) -> Iterator[bytes]:
        """The events above `after` up to the head of now, each as a line of JSON."""
        query = {"after": after, "types": ",".join(types) or None}
        headers = {"Accept": "application/x-ndjson"}
        rest = b""
        with self._wire.stream("GET", "/api/log", silence=WALK_SECONDS, query=query, headers=headers) as chunks:
            for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines

    def verify(self, *, full: bool = True, heads: Sequence[str] = ()) -> Answer:
        """Walk the hash chain: `{"ok", "events", "head", "verified_from"?, "first_bad"?, "detail"?}`.

        `full=False`: only the events since the last walk of that process. `heads`: `POSITION:HASH` of events that the
        log must contain.
        """
        query = {"full": None if full else "false", "head": ",".join(heads) or None}
        return self._get("/api/log/verify", query, wait=WALK_SECONDS)

    def diff(self, before: int | str, after: int | str | None = None) -> Answer:
        """What changed from one position or time to another, by default to now."""
        return self._get("/api/log/diff", {"from": before, "to": after}, wait=WALK_SECONDS)

    def explain(self, of: str, *, after: int = 0, limit: int | None = None) -> Answer:
        """`{"generations", "log"}`: what was active for the answer with this id, at this position, or for each with
        this tag, at most `limit` that began above `after`; and the check of the log."""
        query = {"of": of, "after": after or None, "limit": limit}
        return self._get("/api/log/explain", query, wait=WALK_SECONDS)

    def export(self) -> Iterator[bytes]:
        """The bytes of a tar with the whole log, and with programs that verify and explain it on a bare Python."""
        with self._wire.stream("GET", "/api/log/export", silence=WALK_SECONDS) as chunks:
            yield from chunks

    def backup(self, *, saes: bool = False) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a backup of the data folder, a tar, as they come; `saes`: with the files of SAEs.

        One that is cut off ends with `UnreachableError`. `sae-actor backup` writes one to a file, verified.
        """
        query = {"saes": "true" if saes else None}
        return self._wire.stream("GET", "/api/log/backup", silence=WALK_SECONDS, query=query)

    def _get(self, path: str, query: Mapping[str, Any] | None = None, *, wait: float = 0) -> Answer:
        return cast("Answer", self._wire.request("GET", path, query=query, wait=wait)[1])
