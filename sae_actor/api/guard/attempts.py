"""A limit on failed logins per address."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import deque

from ...errors import TooManyAttemptsError
from .sessions import Monotonic


class Attempts:
    """Failed logins: a limit per window and address, and fifty times that for all together."""

    def __init__(self, each: int = 10, seconds: float = 60.0, *, clock: Monotonic = time.monotonic) -> None:
        self._each = each
        self._seconds = seconds
        self._clock = clock
        self._failed: deque[tuple[float, str]] = deque()
        """Time and network of each failed login; at most fifty times `each` of them."""

    def check(self, address: str) -> None:
        """Raises `TooManyAttemptsError`. Called before the token is checked, so that even a valid one is refused."""
        now = self._clock()
        while self._failed and now - self._failed[0][0] >= self._seconds:
            self._failed.popleft()
        network = _network(address)
        own = [at for at, each in self._failed if each == network]
        for failures, most in ((own, self._each), ([at for at, _ in self._failed], 50 * self._each)):
            if len(failures) >= most:
                wait = self._seconds - (now - failures[0])
                raise TooManyAttemptsError("too many failed logins; try again later", retry_after=math.ceil(wait))

    def failed(self, address: str) -> None:
        self._failed.append((self._clock(), _network(address)))


def plain_address(address: str) -> str:
    """An IPv4 address as itself, even if an IPv6 socket reports ::ffff:192.0.2.1."""
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 address: one customer usually has all of it."""
    try:
        parsed = ipaddress.ip_address(plain_address(address))
    except ValueError:
        return address
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))
