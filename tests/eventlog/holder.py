"""A process that opens and closes a log on command: `python -m tests.eventlog.holder FOLDER`.

Reads lines: `open` answers `open PID` or `refused PID-OR-None`; `close` answers `closed`; `spawn` starts a child that
inherits the lock and answers its pid; the end of the input ends it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from sae_actor.errors import LogHeldError
from sae_actor.eventlog import SqliteLog


def say(text: str) -> None:
    print(text, flush=True)


async def main(folder: Path) -> None:
    log: SqliteLog | None = None
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.strip():
            case "open":
                try:
                    log = await SqliteLog.open(folder)
                    say(f"open {log.head.position}")
                except LogHeldError as error:
                    say(f"refused {error.fields['pid']}")
            case "close":
                if log is not None:
                    await log.close()
                log = None
                say("closed")
            case "spawn":
                assert log is not None
                # A careless child: it inherits the descriptor that holds the lock.
                fd = log._lock._fd
                assert fd is not None
                child = await asyncio.create_subprocess_exec("sleep", "60", pass_fds=[fd], stdout=subprocess.DEVNULL)
                say(f"{child.pid}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
