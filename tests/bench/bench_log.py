"""The event log beside plain SQLite, in one run: `python -m tests.bench.bench_log [--events N] [--folder F]`.

append     one event, durable, through the writer       against  one INSERT of the same bytes and its FULL commit
together   64 events in one append, as the actor        against  raw INSERTs of 64 rows, FULL commit each
           stores the turns that wait
64 writers 64 appends waiting at once                   against  the same
replay     `open` with the chain verified, then reading every event, on a log of N events

The two sides take turns, commit by commit, so that both meet the same disk and the same neighbours; figures are
medians of several rounds.
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


async def timed_append(log: SqliteLog, batch: list[Draft]) -> float:
    """Seconds until a durable answer."""
    begin = time.perf_counter()
    await log.append(batch, expected=log.head.position)
    return time.perf_counter() - begin


async def timed_writers(log: SqliteLog, batch: list[Draft]) -> float:
    """Seconds until as many writers as there are events have their answers."""
    at = log.head.position
    begin = time.perf_counter()
    await asyncio.gather(*(log.append([each], expected=at + i) for i, each in enumerate(batch)))
    return time.perf_counter() - begin


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def writing(folder: Path) -> None:
    log, raw = await SqliteLog.open(folder / "log"), Raw(folder)
    singles: list[tuple[list[float], list[float]]] = []
    groups: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        pairs = [(await timed_append(log, [each]), raw.commit([each])) for each in drafts(APPENDS)]
        singles.append(([pair[0] for pair in pairs], [pair[1] for pair in pairs]))
        for _ in range(GROUPS):
            batch = drafts(WRITERS)
            groups.append((await timed_append(log, batch), await timed_writers(log, batch), raw.commit(batch)))
    await log.close()
    raw.close()

    print(f"{'':24}{'event log':>14}{'raw SQLite':>14}{'ratio':>9}")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        mine, other = (statistics.median(percentile(each[side], share) for each in singles) * 1e6 for side in (0, 1))
        print(f"append {name:4}       [us]  {mine:14.0f}{other:14.0f}{mine / other:9.2f}")
    together, writers, plain = (WRITERS / statistics.median(each[side] for each in groups) for side in range(3))
    print(f"{WRITERS} together  [events/s]  {together:14,.0f}{plain:14,.0f}{together / plain:9.2f}")
    print(f"{WRITERS} writers   [events/s]  {writers:14,.0f}{plain:14,.0f}{writers / plain:9.2f}")


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
    for name, taken in (("open, chain verified", opened), ("read of every event", read), ("plain SELECT", plainly)):
        print(f"{name:24}{taken:7.2f} s {events / taken:12,.0f} events/s {taken / plainly:6.2f} x plain SELECT")
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
