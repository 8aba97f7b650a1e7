"""What the log's tests share: drafts, logs with a known content, folders as they are on disk."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_actor.domain.events import ActorStopped, Draft, Event, draft
from sae_actor.eventlog import SqliteLog

TIME = "2026-01-31T12:00:00.000000Z"
REPOSITORY = Path(__file__).resolve().parents[2]


def a_draft(text: str = "requested", command_id: str | None = None, principal: str = "local") -> Draft:
    return draft(ActorStopped(reason=text), time=TIME, command_id=command_id, principal=principal)


def some_drafts(count: int, prefix: str = "r") -> list[Draft]:
    return [a_draft(f"{prefix}{i}", command_id=f"c{i % 5}") for i in range(count)]


async def fill(log: SqliteLog, count: int, per_append: int = 3) -> list[Event]:
    """Append so many events, a few at a time; all events of the log."""
    left = some_drafts(count)
    while left:
        await log.append(left[:per_append], expected=log.head.position)
        left = left[per_append:]
    return await log.read(0, log.head.position)


async def make_log(folder: Path, count: int) -> list[Event]:
    """A closed log of so many events."""
    log = await SqliteLog.open(folder)
    try:
        return await fill(log, count)
    finally:
        await log.close()


def shown(events: Sequence[Event]) -> list[tuple[object, ...]]:
    """Events in a form that compares: `Raw` does not."""
    return [
        (e.position, e.event_id, e.type, e.schema, e.time, e.command_id, e.principal, bytes(e.data), e.hash)
        for e in events
    ]


def content(folder: Path) -> dict[str, str]:
    """Digest of every file but the lock, whose text is no part of the log."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "events.lock"
    }


def python(module: str, *arguments: str, stdin: int | None = None, user: int | None = None) -> subprocess.Popen[str]:
    """A real process that runs a module of the tests."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        user=user,
    )


def copy_while_open(folder: Path, to: Path) -> None:
    """The folder as a kill would leave it. Copied by another process: reading events.db here would drop its locks."""
    subprocess.run(["cp", "-r", str(folder), str(to)], check=True)


async def make_killed_log(folder: Path, count: int) -> list[Event]:
    """A log as a kill leaves it: the last events are in `events.db-wal` alone."""
    made = folder.with_name(f"{folder.name}-made")
    log = await SqliteLog.open(made)
    events = await fill(log, count)
    copy_while_open(made, folder)
    await log.close()
    return events


async def bounded(log: SqliteLog, nbytes: int) -> SqliteLog:
    """The log on a disk with room for so many bytes of the database. SQLite never goes below what it has already."""
    (size,) = (await log._db.fetch("PRAGMA page_size"))[0]
    await log._db.fetch(f"PRAGMA max_page_count = {max(1, nbytes // size)}")
    return log
