"""A process whose power is cut: `python -m tests.eventlog.powered FOLDER full|normal|off`.

Appends of several sizes, alone and together, and a WAL that is folded often; prints `position hash` of what was
answered. `normal` is the mutant: a commit that is not synced.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sae_actor.domain.events import Event
from sae_actor.eventlog import SqliteLog, writer
from tests.eventlog.making import a_draft


def say(events: tuple[Event, ...]) -> None:
    print("".join(f"{event.position} {event.hash}\n" for event in events), end="", flush=True)


async def main(folder: Path, synchronous: str) -> None:
    writer.WAL_PAGES = 24
    writer.SYNC_EVENTS = 16
    for start in range(3):
        log = await SqliteLog.open(folder)
        await log._db.fetch(f"PRAGMA synchronous = {synchronous.upper()}")
        for i in range(12):
            size = 9000 if i % 7 == 3 else 50
            say(await log.append([a_draft(f"{start}-{i}" + "x" * size, command_id="c")], expected=log.head.position))
        at = log.head.position
        for events in await asyncio.gather(*(log.append([a_draft(f"{i}")], expected=at + i) for i in range(5))):
            say(events)
        await log.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
