"""Counters of the generations, for metrics."""

from __future__ import annotations

from ..telemetry.metrics import Counter


class GenerationCounts:
    """Of one life of the process."""

    def __init__(self) -> None:
        self.texts = Counter()
        """By finish reason."""
        self.tokens = Counter()
        """`prompt` and `generated`."""
