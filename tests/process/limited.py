"""The service of `launch` under limits of the system: `LIMITS="NOFILE=64 AS=…" python -m tests.process.limited DATA …`.

`NPROC` counts the threads of a user, and never root's: a root process becomes another user first, which may read and
write what root may. On SIGUSR2 it may have no more threads than it has. `APPEND=0.2` is a disk so slow that each
append to the log takes that many seconds longer.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence
from typing import Any

from sae_actor.eventlog import SqliteLog

from . import launch

LONELY_USER = 54321
_PR_SET_KEEPCAPS = 8
_CAPABILITIES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: files, and nothing else."""


def main() -> int:
    limits = dict(pair.split("=") for pair in os.environ["LIMITS"].split())
    _slow_down(float(limits.pop("APPEND", 0)))
    if "NPROC" in limits and os.getuid() == 0:
        _become_another_user()
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(most), int(most)))
    signal.signal(signal.SIGUSR2, _no_more_threads)
    return launch.main()


def _slow_down(seconds: float) -> None:
    append = SqliteLog.append

    async def slow(self: SqliteLog, drafts: Sequence[Any], *, expected: int) -> Any:
        await asyncio.sleep(seconds)
        return await append(self, drafts, expected=expected)

    if seconds:
        SqliteLog.append = slow  # type: ignore[method-assign]


def _no_more_threads(*_: object) -> None:
    has = len(os.listdir("/proc/self/task"))
    resource.setrlimit(resource.RLIMIT_NPROC, (has, has))


def _become_another_user() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setresuid(LONELY_USER, LONELY_USER, LONELY_USER)
    header = struct.pack("Ii", 0x20080522, 0)
    sets = struct.pack("6I", _CAPABILITIES, _CAPABILITIES, 0, 0, 0, 0)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    raise SystemExit(main())
