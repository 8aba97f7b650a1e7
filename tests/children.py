"""Child processes of tests: a test that fails, or is given up, leaves none behind and waits for none."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

WAIT_SECONDS = 10
"""For the end of a process that was killed."""


@contextmanager
def child(command: Sequence[str], **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process with these settings of `Popen`; killed and reaped, its pipes closed, where the block ends."""
    process = subprocess.Popen(command, **settings)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait(WAIT_SECONDS)
