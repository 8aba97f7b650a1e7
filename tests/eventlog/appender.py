"""A process that appends until it is killed: `python -m tests.eventlog.appender FOLDER WRITERS`.

Prints `position hash` of every event once its append has been answered.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sae_actor.eventlog import SqliteLog
from tests.eventlog.making import a_draft


async def main(folder: Path, writers: int) -> None:
    log = await SqliteLog.open(folder)
    print(f"{log.head.position} {log.head.hash}", flush=True)
    while True:
        at = log.head.position
        appends = []
        for i in range(writers):
            count = 1 + i % 3
            appends.append(log.append([a_draft(f"{at}-{k}") for k in range(count)], expected=at))
            at += count
        for events in await asyncio.gather(*appends):
            for event in events:
                print(f"{event.position} {event.hash}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
