"""Logins of browsers: random ids, each in a cookie."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from ...config.access import Grant
from .open_requests import OpenRequests

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
        self.open_requests = OpenRequests()
        """Those of a session by its key, those with a token by its grant."""

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
        """End the sessions and the requests of these grants."""
        for key in [key for key, session in self._open.items() if session.grant in grants]:
            self._drop(key)
        self.open_requests.end(grants)

    def lasting(self, session_id: str) -> tuple[bytes, float]:
        """The key of a session, and the seconds that it still lasts."""
        key = _key(session_id)
        session = self._open.get(key)
        return key, 0.0 if session is None else session.expires - self._clock()

    def _drop(self, key: bytes) -> None:
        self._open.pop(key, None)
        self.open_requests.end([key])


def _key(session_id: str) -> bytes:
    """Looked up by digest, so that the time of a look-up reveals nothing about the ids."""
    return hashlib.sha256(session_id.encode()).digest()
