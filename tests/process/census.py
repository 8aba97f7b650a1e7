"""What lives in a service process: it counts when it gets SIGUSR1, and writes the numbers down beside its data."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple


class Census(NamedTuple):
    """Objects that the garbage collector knows, tasks of the loop, open files, and bytes in memory."""

    objects: int
    tasks: int
    files: int
    resident: int


def count_on_signal(data: Path) -> None:
    """In the service process, before it serves."""

    def count(number: int, frame: FrameType | None) -> None:
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        # Counted within a callback of the loop, where there is one.
        found = {"objects": len(gc.get_objects()), "tasks": len(asyncio.all_tasks()), "files": files}
        part = _written(data).with_suffix(".part")
        part.write_text(json.dumps(found))
        part.rename(_written(data))

    signal.signal(signal.SIGUSR1, count)


def census(pid: int, data: Path) -> Census:
    """Ask the process that serves `data`."""
    _written(data).unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while not _written(data).exists():
        assert time.monotonic() < deadline, "the process does not count"
        time.sleep(0.01)
    found = json.loads(_written(data).read_text())
    return Census(**found, resident=resident(pid))


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _written(data: Path) -> Path:
    return data.with_name(f"{data.name}.census")
