"""The event log beside plain SQLite, in one run: `python -m tests.bench.bench_log [--events N] [--folder F]`.

append     one event, durable, through the writer       against  one INSERT of the same bytes and its FULL commit
group      64 writers waiting at once                   against  raw INSERTs of 64 rows, FULL commit each
replay     `open` with the chain verified, then reading every event, on a log of N events

Every figure is the median of several rounds, in which the two sides take turns; a ratio compares medians.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sae_actor.domain.events import Draft, SteeringChanged, draft
from sae_actor.domain.refs import Edit
from sae_actor.eventlog import SqliteLog
from sae_actor.eventlog.chain import genesis, link_all, seal
from sae_actor.eventlog.schema import COLUMNS, NAME, SCHEMA, insert_statement
from sae_actor.ports import Head

ROUNDS = 7
APPENDS = 400
GROUPS = 40
WRITERS = 64
LOG_ID = "00" * 16


def drafts(count: int) -> list[Draft]:
    """Steering events of a usual size: 250 bytes of payload."""
    edit = Edit(feature=584, strength=85.0, exclude=("sink",))
    return [
        draft(
            SteeringChanged(sae_id="demo-sae-root-main-0badc0de", features=(edit,), request_sha256=f"{i:064x}"),
            time="2026-01-31T12:00:00.000000Z",
            command_id=f"00000000-0000-4000-8000-{i:012x}",
            principal="local",
        )
        for i in range(count)
    ]


class Raw:
    """The same columns, index and bytes in plain `sqlite3`: WAL, FULL, nothing else."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "raw.db", isolation_level=None, cached_statements=256)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(SCHEMA["events"])
        self._db.execute(SCHEMA["events_of_command"])
        self._at = 0

    def commit(self, batch: list[Draft]) -> float:
        """Seconds of one durable INSERT of these events; salts and digests are made beforehand."""
        rows = link_all([seal(each) for each in batch], Head(self._at, genesis(LOG_ID).hex()))
        parameters = [column for row in rows for column in row]
        statement = insert_statement(len(rows))
        begin = time.perf_counter()
        self._db.execute(statement, parameters)
        self._at += len(rows)
        return time.perf_counter() - begin

    def close(self) -> None:
        self._db.close()


async def append_latency(log: SqliteLog) -> list[float]:
    taken = []
    for each in drafts(APPENDS):
        begin = time.perf_counter()
        await log.append([each], expected=log.head.position)
        taken.append(time.perf_counter() - begin)
    return taken


async def group_rate(log: SqliteLog) -> float:
    """Events per second with `WRITERS` appends waiting all the time."""
    batches = [drafts(WRITERS) for _ in range(GROUPS)]
    begin = time.perf_counter()
    for batch in batches:
        at = log.head.position
        await asyncio.gather(*(log.append([each], expected=at + i) for i, each in enumerate(batch)))
    return WRITERS * GROUPS / (time.perf_counter() - begin)


def raw_group_rate(raw: Raw) -> float:
    return WRITERS * GROUPS / sum(raw.commit(drafts(WRITERS)) for _ in range(GROUPS))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def writing(folder: Path) -> None:
    log, raw = await SqliteLog.open(folder / "log"), Raw(folder)
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    groups: list[float] = []
    raw_groups: list[float] = []
    for _ in range(ROUNDS):
        theirs.append([raw.commit([each]) for each in drafts(APPENDS)])
        ours.append(await append_latency(log))
        raw_groups.append(raw_group_rate(raw))
        groups.append(await group_rate(log))
    await log.close()
    raw.close()

    def median(rounds: list[list[float]], share: float) -> float:
        return statistics.median(percentile(each, share) for each in rounds) * 1e6

    print(f"{'':24}{'event log':>14}{'raw SQLite':>14}{'ratio':>9}")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        mine, other = median(ours, share), median(theirs, share)
        print(f"append {name:4}       [us]  {mine:14.0f}{other:14.0f}{mine / other:9.2f}")
    rate, raw_rate = statistics.median(groups), statistics.median(raw_groups)
    print(f"{WRITERS} writers   [events/s]  {rate:14,.0f}{raw_rate:14,.0f}{rate / raw_rate:9.2f}")


async def replay(folder: Path, events: int) -> None:
    log = await SqliteLog.open(folder / "replay")
    batch = drafts(2000)
    while log.head.position < events:
        await log.append(batch[: events - log.head.position], expected=log.head.position)
    await log.close()
    size = (folder / "replay" / NAME).stat().st_size

    def plain() -> int:
        with sqlite3.connect(f"file:{folder / 'replay' / NAME}?mode=ro", uri=True) as db:
            count = sum(1 for _ in db.execute(f"SELECT {COLUMNS} FROM events ORDER BY position"))
        db.close()
        return count

    opening: list[float] = []
    reading: list[float] = []
    baseline: list[float] = []
    for _ in range(3):
        baseline.append(seconds(plain))
        begin = time.perf_counter()
        log = await SqliteLog.open(folder / "replay")
        opening.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        at = 0
        while page := await log.read(at):
            at = page[-1].position
        reading.append(time.perf_counter() - begin)
        await log.close()
    opened, read, plainly = (statistics.median(each) for each in (opening, reading, baseline))
    print(f"\nreplay of {events:,} events, {size / 1e6:,.0f} MB (median of 3)")
    print(
        f"open, chain verified   {opened:7.2f} s {events / opened:12,.0f} events/s {opened / plainly:6.2f} x plain SELECT"
    )
    print(f"read of every event    {read:7.2f} s {events / read:12,.0f} events/s {read / plainly:6.2f} x plain SELECT")
    print(f"plain SELECT           {plainly:7.2f} s {events / plainly:12,.0f} events/s")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="length of the replayed log")
    parser.add_argument("--folder", type=Path, help="where to write (the disk to be measured); default: temporary")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        await writing(Path(folder))
        await replay(Path(folder), arguments.events)


if __name__ == "__main__":
    asyncio.run(main())
