"""Write the golden log of the version that is about to be released: `python -m tests.eventlog.make_golden`.

A whole log on disk with every type of event there is, one payload erased, its export, and the states that it comes
to. What was released is a fact: nothing is overwritten.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from sae_actor import __version__
from sae_actor.domain.events import Draft, Event
from sae_actor.domain.evolve import evolve
from sae_actor.domain.state import EMPTY
from sae_actor.domain.views.resources import state_view
from sae_actor.eventlog import SqliteLog, events_of, export_bundle, redact
from tests.eventlog.making import TIME

GOLDEN = Path(__file__).parent / "golden"
STORY = Path(__file__).parents[1] / "domain" / "golden_events.ndjson"


async def make(folder: Path) -> None:
    told = [msgspec.json.decode(line, type=Event) for line in STORY.read_bytes().splitlines()]
    drafts = [
        Draft(**{name: getattr(event, name) for name in Draft.__struct_fields__})  # all but position and hash
        for event in told
    ]
    with tempfile.TemporaryDirectory() as scratch:
        log = await SqliteLog.open(Path(scratch) / "log")
        await log.append(drafts, expected=0)
        await log.close()
        refused = next(event.position for event in told if event.type == "CommandRejected")
        await redact(Path(scratch) / "log", refused, "a golden erasure", time=TIME)
        await export_bundle(Path(scratch) / "log", Path(scratch) / "bundle")
        state, states = EMPTY, []
        async for event in events_of(Path(scratch) / "log"):
            state = evolve(state, event)
            states.append(state_view(state))
        await asyncio.to_thread(folder.mkdir, parents=True)
        for name in ("events.db", "head.checkpoint"):
            shutil.copy(Path(scratch) / "log" / name, folder / name)
        shutil.copytree(Path(scratch) / "bundle", folder / "bundle")
        # Every tenth: each holds all that there is at its position.
        (folder / "states.json").write_bytes(
            msgspec.json.format(msgspec.json.encode([*states[9::10], states[-1]], order="sorted"), indent=1) + b"\n"
        )


if __name__ == "__main__":
    if (GOLDEN / __version__).exists():
        sys.exit(f"the golden log of {__version__} is there, and stays as it is")
    asyncio.run(make(GOLDEN / __version__))
