"""The settings of the guard."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...config.access import Access
from .sessions import Sessions


@dataclass(slots=True, kw_only=True)
class Policy:
    """The part of the application's context that the guard needs."""

    access: Access = field(default_factory=Access)
    """The grants of tokens; without any, no token is required."""
    sessions: Sessions = field(default_factory=Sessions)
    """The logins of the page's users."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host names that a request may be addressed to; `*`: any."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the API, besides our own."""
