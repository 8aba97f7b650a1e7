"""The event log beside plain SQLite and the `eventsourcing` library, in one run:

    python -m tests.bench.bench_log [--events N] [--folder F]

append     one event, durable, through the writer       against  one INSERT of the same bytes and its FULL commit
one CPU    the same with this process held to one CPU: the writer has a thread of its own, and to wake another CPU of
           a virtual machine costs it 20 to 40 µs each way
together   64 events in one append, as the actor        against  raw INSERTs of 64 rows, FULL commit each
           stores the turns that wait
64 writers each appends, waits for its answer and       against  the same, and one insert after the other through
           appends again                                         the library's SQLite recorder
replay     `open` with the chain verified, then reading every event, on a log of N events

Writer and raw SQLite take turns, commit by commit, so that both meet the same disk and the same neighbours, the
library has the turn behind them in each round; figures are medians of several rounds. It comes with
`pip install .[bench]`; without it its column is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sae_actor.domain.events import Draft, SteeringChanged, draft
from sae_actor.domain.refs import Edit
from sae_actor.eventlog import SqliteLog
from sae_actor.eventlog.chain import genesis, link_all, seal
from sae_actor.eventlog.schema import COLUMNS, NAME, SCHEMA, insert_statement
from sae_actor.ports import Head

StoredEvent: Any = None
SQLiteAggregateRecorder: Any = None
SQLiteDatastore: Any = None
with contextlib.suppress(ImportError):
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.sqlite import SQLiteAggregateRecorder, SQLiteDatastore

ROUNDS = 7
APPENDS = 200
GROUPS = 5
WRITERS = 64
TURNS = 16
"""Appends of each writer in a group; that the writers come to be is shared by so many."""
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
        rows = link_all([seal(each, os.urandom(16)) for each in batch], Head(self._at, genesis(LOG_ID).hex()))
        parameters = [column for row in rows for column in row]
        statement = insert_statement(len(rows))
        begin = time.perf_counter()
        self._db.execute(statement, parameters)
        self._at += len(rows)
        return time.perf_counter() - begin

    def close(self) -> None:
        self._db.close()


class Library:
    """The SQLite recorder of the `eventsourcing` library, with its own settings."""

    def __init__(self, folder: Path) -> None:
        self._recorder = SQLiteAggregateRecorder(SQLiteDatastore(str(folder / "library.db")))
        self._recorder.create_table()
        self._id = uuid.UUID(int=1)
        self._at = 0

    def commit(self, batch: list[Draft]) -> float:
        """Seconds of one durable insert of these payloads."""
        stored = [StoredEvent(self._id, self._at + i, each.type, bytes(each.data)) for i, each in enumerate(batch)]
        self._at += len(batch)
        return seconds(lambda: self._recorder.insert_events(stored))

    def read(self) -> float:
        """Events a second, all of them at once."""
        taken = seconds(lambda: self._recorder.select_events(self._id))
        return self._at / taken

    def close(self) -> None:
        self._recorder.datastore.close()


async def timed_append(log: SqliteLog, batch: list[Draft]) -> float:
    """Seconds until a durable answer."""
    begin = time.perf_counter()
    await log.append(batch, expected=log.head.position)
    return time.perf_counter() - begin


async def timed_writers(log: SqliteLog, batches: list[list[Draft]]) -> float:
    """Seconds until every writer has had all its answers; each batch has one event of each writer."""
    at = log.head.position

    async def writer(own: list[Draft]) -> None:
        nonlocal at
        for each in own:
            expected, at = at, at + 1
            await log.append([each], expected=expected)

    begin = time.perf_counter()
    await asyncio.gather(*(writer([batch[number] for batch in batches]) for number in range(WRITERS)))
    return time.perf_counter() - begin


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """Every thread of this process on the first CPU that it may use; nothing where a system knows no such thing."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    threads = [int(each) for each in os.listdir("/proc/self/task")]
    allowed = os.sched_getaffinity(0)
    try:
        for each in threads:
            os.sched_setaffinity(each, {min(allowed)})
        yield
    finally:
        for each in threads:
            os.sched_setaffinity(each, allowed)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def writing(folder: Path) -> None:
    log, raw = await SqliteLog.open(folder / "log"), Raw(folder)
    library = Library(folder) if SQLiteAggregateRecorder is not None else None
    singles: list[list[list[float]]] = []
    groups: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        singles.append([[], [], [], [], []])
        for each in drafts(APPENDS):
            singles[-1][0].append(await timed_append(log, [each]))
            singles[-1][1].append(raw.commit([each]))
        with on_one_cpu():
            for each in drafts(APPENDS):
                singles[-1][3].append(await timed_append(log, [each]))
                singles[-1][4].append(raw.commit([each]))
        if library is not None:
            singles[-1][2] += [library.commit([each]) for each in drafts(APPENDS)]
        for _ in range(GROUPS):
            batches = [drafts(WRITERS) for _ in range(TURNS)]
            plain = sum([raw.commit(batch) for batch in batches])
            together = sum([await timed_append(log, batch) for batch in batches])
            groups.append((together, await timed_writers(log, batches), plain))

    def of_side(side: int, share: float) -> float:
        return statistics.median(percentile(each[side], share) for each in singles) * 1e6

    print(f"{'':24}{'event log':>14}{'raw SQLite':>14}{'ratio':>9}")
    for name, own, its, share in (("append p50", 0, 1, 0.5), ("append p99", 0, 1, 0.99), ("one CPU p50", 3, 4, 0.5)):
        mine, other = of_side(own, share), of_side(its, share)
        print(f"{name:11}      [us]  {mine:14.0f}{other:14.0f}{mine / other:9.2f}")
    together, writers, plain = (WRITERS * TURNS / statistics.median(each[side] for each in groups) for side in range(3))
    print(f"{WRITERS} together  [events/s]  {together:14,.0f}{plain:14,.0f}{together / plain:9.2f}")
    print(f"{WRITERS} writers   [events/s]  {writers:14,.0f}{plain:14,.0f}{writers / plain:9.2f}")
    if library is None:
        print("\nthe eventsourcing library is not installed (pip install .[bench]): it is left out")
    else:
        theirs = 1e6 / of_side(2, 0.5)
        print(f"\n{'':24}{'event log':>14}{'eventsourcing':>14}{'times':>9}")
        print(f"{WRITERS} writers   [events/s]  {writers:14,.0f}{theirs:14,.0f}{writers / theirs:9.1f}")
        one = 1e6 / of_side(0, 0.5)
        print(f"one writer   [events/s]  {one:14,.0f}{theirs:14,.0f}{one / theirs:9.1f}")
        begin, head = time.perf_counter(), log.head.position
        at = 0
        while page := await log.read(at):
            at = page[-1].position
        mine, other = head / (time.perf_counter() - begin), library.read()
        print(f"reading      [events/s]  {mine:14,.0f}{other:14,.0f}{mine / other:9.1f}")
        library.close()
    await log.close()
    raw.close()


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
