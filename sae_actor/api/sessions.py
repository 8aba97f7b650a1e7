"""Logins of browsers: random ids that a cookie holds, and how often one address may fail to get one."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..access import Grant
from ..errors import TooManyAttemptsError

Monotonic = Callable[[], float]


class _Session(NamedTuple):
    grant: Grant
    expires: float


class Sessions:
    """In memory and nowhere else: a restart logs everyone out. Ids are kept as digests."""

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
        """A new session; its id is told once and not kept."""
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
        """Whose session it is; None for one that has ended or never was."""
        session = self._open.get(_key(session_id))
        return session.grant if session is not None and session.expires > self._clock() else None

    def end(self, session_id: str) -> None:
        self._drop(_key(session_id))

    @contextmanager
    def lasting(self, session_id: str) -> Iterator[asyncio.Event]:
        """Around what is done under a session: the event is set when that ends, for whatever reason."""
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
    """Looked up by digest, so that the time of a look-up tells nothing about the ids."""
    return hashlib.sha256(session_id.encode()).digest()


class Attempts:
    """Failed logins: so many in a window for each address, and fifty times as many for all together."""

    def __init__(self, each: int = 10, seconds: float = 60.0, *, clock: Monotonic = time.monotonic) -> None:
        self._each = each
        self._seconds = seconds
        self._clock = clock
        self._all: deque[float] = deque()
        self._of: dict[str, deque[float]] = {}
        """Never more addresses than failures in `_all`, so never more than fifty times `each`."""

    def check(self, address: str) -> None:
        """Raises `TooManyAttemptsError`, before a token is looked at: a right one is not told apart then."""
        now = self._clock()
        self._forget(now)
        own = self._of.get(_network(address), deque())
        for failures, most in ((own, self._each), (self._all, 50 * self._each)):
            if len(failures) >= most:
                wait = self._seconds - (now - failures[0])
                raise TooManyAttemptsError("too many logins have failed", retry_after=math.ceil(wait))

    def failed(self, address: str) -> None:
        now = self._clock()
        self._all.append(now)
        self._of.setdefault(_network(address), deque()).append(now)

    def _forget(self, now: float) -> None:
        while self._all and now - self._all[0] >= self._seconds:
            self._all.popleft()
        for network, failures in list(self._of.items()):
            while failures and now - failures[0] >= self._seconds:
                failures.popleft()
            if not failures:
                del self._of[network]


def plain_address(address: str) -> str:
    """An IPv4 address as itself, also where a socket of IPv6 says ::ffff:192.0.2.1 for it."""
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def _network(address: str) -> str:
    """One customer has one IPv4 address, or 2⁶⁴ of IPv6."""
    try:
        parsed = ipaddress.ip_address(plain_address(address))
    except ValueError:
        return address
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))
