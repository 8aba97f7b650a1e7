"""Words to systemd (sd_notify): ready, reloading, stopping, alive. Without `NOTIFY_SOCKET` nothing is said.

READY comes when nothing that the last start owes is on its way any more, so that a rolling restart waits for a model
that takes minutes; `EXTEND_TIMEOUT_USEC` asks for that time. The watchdog is fed by the event loop: one that hangs for
longer than `WATCHDOG_USEC` lets systemd end the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

EVERY_SECONDS = 5.0
"""How often a start asks for more time, and how often readiness is looked at: at least."""
EXTEND = 10 * int(EVERY_SECONDS * 1e6)
"""Microseconds."""


class Supervisor:
    """Of this process, as its environment names it."""

    def __init__(self, address: str | None = None, watchdog_usec: str | None = None) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET") if address is None else address
        microseconds = os.environ.get("WATCHDOG_USEC", "0") if watchdog_usec is None else watchdog_usec
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdigit() else 0.0

    def tell(self, *lines: str) -> None:
        """A supervisor that has gone, or does not read, is not waited for."""
        if not self._address:
            return
        path = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
            try:
                out.sendto("\n".join(lines).encode(), path)
            except OSError:
                return

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def attend(self, waiting_for: Callable[[], list[str]]) -> None:
        """Say READY once `waiting_for` is empty, then feed the watchdog; for ever."""
        if not self._address:
            return
        # Half of it, as sd_watchdog_enabled(3) advises.
        beat = min(EVERY_SECONDS, self.watchdog_seconds / 2) if self.watchdog_seconds else EVERY_SECONDS
        is_ready = False
        while True:
            reasons = waiting_for()
            if not is_ready and not reasons:
                is_ready = True
                self.tell("READY=1", "STATUS=ready")
            elif not is_ready:
                self.tell(f"EXTEND_TIMEOUT_USEC={EXTEND}", f"STATUS={'; '.join(reasons)}")
            if self.watchdog_seconds:
                self.tell("WATCHDOG=1")
            await asyncio.sleep(beat if is_ready else min(beat, 0.2))
