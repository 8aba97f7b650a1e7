"""The time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def now(self) -> str:
        """Wall time, RFC 3339 UTC with microseconds (`2026-01-31T12:00:00.000000Z`)."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
