"""Counts and reports what arrives, at most four times a second; reports waits too."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal

from msgspec.structs import replace

from ...ports import OnProgress, Progress

INTERVAL = 0.25
_WINDOW_SECONDS = 5.0


class Meter:
    """Progress of one download. `send` takes the messages; `total` is set when the files are known."""

    def __init__(self, send: OnProgress, kind: Literal["download", "catalog", "fetch"], subject: str) -> None:
        self._send = send
        self._what = Progress(kind=kind, subject=subject, phase="resolving")
        self._said = float("-inf")
        self._phase = "resolving"
        self._done = 0
        """Bytes of the files before the current one."""
        self._current = 0
        self._file: str | None = None
        self._recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self.total = 0
        self.received = 0
        """Bytes that came over the network, those that had to be thrown away too."""

    def phase(self, name: str) -> None:
        self._phase = name
        self._say()

    def start(self, file: str) -> None:
        """Begin a file, or begin it again."""
        if file != self._file:
            self._done += self._current
        self._current = 0
        self._file = file

    def add(self, count: int, *, received: bool) -> None:
        """`count` more bytes of the file are right, so far; `received` separates the network from the disk."""
        self._current += count
        self._phase = "body" if received else "verifying"
        if received:
            self.received += count
        self._say()

    def wait(self, seconds: float, reason: str) -> None:
        """Sleep, and report every second that this is a wait."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if time.monotonic() - self._said >= INTERVAL:
                self._said = time.monotonic()
                self._tell(phase="waiting", seconds_left=round(left, 3), reason=reason)
            time.sleep(min(left, 1.0))

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said < INTERVAL:
            return
        self._said = now
        self._recent.append((now, self.received))
        while len(self._recent) > 2 and now - self._recent[0][0] > _WINDOW_SECONDS:
            self._recent.popleft()
        then, before = self._recent[0]
        rate = (self.received - before) / (now - then) if now > then else 0.0
        left = None
        if self._phase == "body" and rate > 0:
            left = round((self.total - self._done - self._current) / rate, 1)
        self._tell(phase=self._phase, rate=round(rate, 1), seconds_left=left)

    def _tell(self, **now: Any) -> None:
        there = self._done + self._current
        self._send(replace(self._what, done=there, total=self.total, file=self._file, **now))
