"""A process that does one thing to a log and is killed in it: `python -m tests.eventlog.cut FOLDER ACTION [TO]`.

append   opens the log, appends three times and closes it      backup   copies FOLDER to TO while it is open
export   FOLDER as a bundle to TO                               import   the bundle FOLDER into TO
redact   erases the payload of event 2                          restore  the backup FOLDER into TO
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from sae_actor.backups.restoring import restore
from sae_actor.eventlog import SqliteLog, export_bundle, import_bundle, redact
from tests.eventlog.making import TIME, a_draft


async def main(folder: Path, action: str, to: Path) -> None:
    os.write(2, b"begin\n")  # so that a trace knows where the imports ended
    match action:
        case "append":
            log = await SqliteLog.open(folder)
            for _ in range(3):
                (event,) = await log.append([a_draft()], expected=log.head.position)
                print(f"{event.position} {event.hash}", flush=True)
            await log.close()
        case "backup":
            log = await SqliteLog.open(folder)
            await log.backup(to)
            await log.close()
        case "export":
            await export_bundle(folder, to)
        case "import":
            await import_bundle(folder, to)
        case "restore":
            await restore(folder, to)
        case "redact":
            await redact(folder, 2, "asked to", time=TIME)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[-1])))
