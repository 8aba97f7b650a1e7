"""A token bucket: a rate limit."""

from __future__ import annotations


class TokenBucket:
    """A bucket of tokens: at most `burst` at once, `per_second` over time."""

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, now: float) -> bool:
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
