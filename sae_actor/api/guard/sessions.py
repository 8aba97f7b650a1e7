"""Logins of browsers: random ids, each in a cookie."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ...config.access import Grant

Monotonic = Callable[[], float]


class _Session(NamedTuple):
    grant: Grant
    expires: float


class Sessions:
    """Kept in memory only: a restart logs everyone out. Ids are kept as digests."""

    def __init__(self, seconds: float = 12 * 3600.0, *, each: int = 16, clock: Monotonic = time.monotonic) -> None:
        """`each`: sessions of one name; a further login ends its oldest."""
        self.seconds = seconds
        self._each = each
        self._clock = clock
        self._open: dict[bytes, _Session] = {}
        """Oldest first."""
        self._lasting: dict[bytes, set[asyncio.Event]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, grant: Grant) -> str:
        """A new session; its id is returned once and not kept."""
        now = self._clock()
        for key in [key for key, session in self._open.items() if session.expires <= now]:
            self._drop(key)
        own = [key for key, session in self._open.items() if session.grant.name == grant.name]
        for key in own[: max(0, len(own) - self._each + 1)]:
            self._drop(key)
        session_id = secrets.token_urlsafe(32)
        self._open[_key(session_id)] = _Session(grant, now + self.seconds)
        return session_id

    def of(self, session_id: str) -> Grant | None:
        """The session's grant; None if it has ended or never existed."""
        session = self._open.get(_key(session_id))
        return session.grant if session is not None and session.expires > self._clock() else None

    def end(self, session_id: str) -> None:
        self._drop(_key(session_id))

    def withdraw(self, grants: Collection[Grant]) -> None:
        """End the sessions of these grants."""
        for key in [key for key, session in self._open.items() if session.grant in grants]:
            self._drop(key)

    @contextmanager
    def lasting(self, session_id: str) -> Iterator[asyncio.Event]:
        """Entered while a request of the session runs: the event is set when the session ends, for whatever reason."""
        key, ended = _key(session_id), asyncio.Event()
        session = self._open.get(key)
        left = 0.0 if session is None else session.expires - self._clock()
        timer = asyncio.get_running_loop().call_later(left, ended.set)
        lasting = self._lasting.setdefault(key, set())
        lasting.add(ended)
        try:
            yield ended
        finally:
            timer.cancel()
            lasting.discard(ended)
            if not lasting:
                self._lasting.pop(key, None)

    def _drop(self, key: bytes) -> None:
        self._open.pop(key, None)
        for ended in self._lasting.pop(key, ()):
            ended.set()


def _key(session_id: str) -> bytes:
    """Looked up by digest, so that the time of a look-up reveals nothing about the ids."""
    return hashlib.sha256(session_id.encode()).digest()
