"""How long the service keeps the event loop to itself, without a clock: what it does in one round of the loop.

A request such as `/health` takes a handful of rounds, so each has to be short. Counted are calls that the package makes
(functions of its own and those that they call in C) and bytes of JSON that it encodes, on the loop's thread. Work in
other threads does not count, nor does that of the client or of the fake engine.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

import sae_actor

PACKAGE = str(Path(sae_actor.__file__).parent)
ELSEWHERE = "/eventlog/"
"""The log in memory seals events here; the real one has a thread for it."""


class LoopWork:
    """The most of any round."""

    def __init__(self) -> None:
        self.calls = 0
        self.encoded = 0
        self.rounds = 0
        self.longest: Counter[str] = Counter()
        """Calls of the round that had the most, by function."""
        self._now: Counter[str] = Counter()
        self._encoded = 0
        self._loop = asyncio.get_running_loop()
        self._over = False

    def tick(self) -> None:
        """A round begins."""
        self.rounds += 1
        if (calls := self._now.total()) > self.calls:
            self.calls, self.longest = calls, self._now
        self.encoded = max(self.encoded, self._encoded)
        self._now, self._encoded = Counter(), 0
        if not self._over:
            self._loop.call_soon(self.tick)

    def end(self) -> None:
        self._over = True
        self.tick()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event in ("call", "c_call") and code.co_filename.startswith(PACKAGE) and ELSEWHERE not in code.co_filename:
            self._now[f"{code.co_filename[len(PACKAGE) + 1 :]}:{code.co_qualname}"] += 1

    def encode(self, size: int) -> None:
        self._encoded += size


@contextmanager
def loop_work() -> Iterator[LoopWork]:
    """Measure while it lasts, on the running loop."""
    work, thread, plain = LoopWork(), threading.get_ident(), msgspec.json.encode

    def encode(*given: Any, **named: Any) -> bytes:
        made = plain(*given, **named)
        if threading.get_ident() == thread:
            work.encode(len(made))
        return made

    msgspec.json.encode = encode
    sys.setprofile(work.profile)
    work.tick()
    try:
        yield work
    finally:
        sys.setprofile(None)
        msgspec.json.encode = plain
        work.end()
