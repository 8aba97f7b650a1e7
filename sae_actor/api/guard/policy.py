"""The settings of the guard."""

from __future__ import annotations

from typing import Protocol

from ...config.access import Access
from .sessions import Sessions


class Policy(Protocol):
    """The part of the application's context that the guard needs."""

    @property
    def access(self) -> Access:
        """Who holds a token; nobody: no token is required."""

    @property
    def sessions(self) -> Sessions:
        """Who has logged in to the page."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that a request may be addressed to; `*`: any."""

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Origins whose pages may use the API, besides our own."""
