"""The time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


def rfc3339(moment: datetime) -> str:
    """A time as the log writes it: UTC with microseconds, so that strings compare as times do."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return text.rjust(len("2026-01-31T12:00:00.000000Z"), "0")  # %Y leaves out the zeros of early years


class Clock(Protocol):
    def now(self) -> str:
        """Wall time, RFC 3339 UTC with microseconds (`2026-01-31T12:00:00.000000Z`)."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class SystemClock:
    """Wall time and monotonic time of this machine."""

    def now(self) -> str:
        return rfc3339(datetime.now(UTC))

    def monotonic(self) -> float:
        return time.monotonic()
