"""The time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Protocol

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def rfc3339(moment: datetime) -> str:
    """A time as the log writes it: UTC with microseconds, so that strings compare as times do."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return text.rjust(len("2026-01-31T12:00:00.000000Z"), "0")  # %Y leaves out the zeros of early years


def as_rfc3339(text: str) -> str | None:
    """A time of RFC 3339, as the log writes it; None for any other text."""
    try:
        return rfc3339(datetime.fromisoformat(text.upper())) if _RFC_3339.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


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
