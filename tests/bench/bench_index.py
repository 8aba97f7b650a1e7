"""Look-ups in a log of many answers, and what its index costs: `python -m tests.bench.bench_index --events 1000000`.

The log is made of texts, steering and restarts, through its own append, in batches. Then the index is made of it and
asked: an answer by its id from anywhere, `?tag=`, events of an SAE and a type, the last event by a time; each look-up
by a process that has just begun, and by one that has answered before. Appends are timed with and without an index that
follows. What ten times as many events would take by the same laws is in the last lines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from sae_actor.domain import events as ev
from sae_actor.domain.events import Draft, draft
from sae_actor.domain.refs import Edit
from sae_actor.domain.views.explanation import Explaining
from sae_actor.eventlog import SqliteLog
from sae_actor.eventlog.index import INDEX, Finder, IndexDatabase, catch_up, follow
from tests.domain.dsl import STARTED, A, Story, attached, cached, given, loaded

BATCH = 2000
LIFE = 8192
"""Events between two restarts."""
SAMPLING = ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=16, seed=1)
LOOKS = 40
APPENDS = 2000


def beginning() -> Story:
    """A model, an SAE attached; up to position 8, so that what follows falls into eights."""
    story = given(STARTED, loaded(), cached("a"), attached(A))
    return story.and_then(ev.SteeringChanged(sae_id=A, features=(Edit(1, 7.0),)))


def more(story: Story, first: int, count: int) -> Iterator[Draft]:
    """Three texts and a steering in eight events; in every `LIFE` a restart. Of a thousand texts two share a tag."""
    restart = (ev.ActorStarted, ev.ModelLoaded, ev.SaeAttached)
    again = [known for event in story.events if isinstance(known := event.payload(), restart)]
    for at in range(first, first + count):
        payload: ev.Payload
        if at % LIFE < 8:
            payload = [ev.ActorStopped(reason="signal"), *again, *again, again[0]][at % LIFE % 7]
        elif at % 8 in (7, 0):
            payload = ev.SteeringChanged(sae_id=A, features=(Edit(at % 2000, 85.0, exclude=("sink",)),))
        elif at % 2:
            payload = ev.GenerationStarted(
                generation_id=f"gen-{at:036d}", kind="chat", intervention=story.state.in_force,
                intervention_sha256="0" * 64, sampling=SAMPLING, tokens_prompt=20,
                tag=f"tag-{at // 2000}" if at % 2000 < 18 else None,
            )  # fmt: skip
        else:
            payload = ev.GenerationFinished(
                generation_id=f"gen-{at - 1:036d}", started_position=at - 1, finish_reason="length",
                intervention_sha256="0" * 64, salt="0" * 32, prompt_sha256="1" * 64, output_sha256="2" * 64,
            )  # fmt: skip
        yield draft(payload, time=moment(at), command_id=None, principal=f"user-{at % 7}")


def moment(at: int) -> str:
    day, second = divmod(at, 86_400)
    return f"2026-{day // 28 % 12 + 1:02d}-{day % 28 + 1:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:" + (
        f"{second % 60:02d}.000000Z"
    )


async def written(folder: Path, events: int) -> float:
    """Seconds of the appends."""
    story = beginning()
    log = await SqliteLog.open(folder)
    await log.append(story.events, expected=0)
    since = time.perf_counter()
    while log.head.position < events:
        at = log.head.position
        await log.append([*more(story, at + 1, min(BATCH, events - at))], expected=at)
    taken = time.perf_counter() - since
    await log.close()
    return taken


async def timed(name: str, look: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds: of the first look-up, and the median and the longest of those after it."""
    taken = []
    for _ in range(LOOKS):
        since = time.perf_counter()
        found = await look()
        taken.append((time.perf_counter() - since) * 1000)
        assert found
    print(f"{name:34}{taken[0]:10.1f}{statistics.median(taken[1:]):10.1f}{max(taken[1:]):10.1f} ms")
    return statistics.median(taken[1:])


async def looks(log: SqliteLog, index: IndexDatabase, head: int) -> None:
    finder, chance = Finder(log, index), random.Random(1)

    def one() -> int:
        """Where a text began."""
        at = chance.randrange(LIFE, head - 8) // 8 * 8 + 3
        return at if at % LIFE >= 8 else at + 8

    async def explained(**wanted: object) -> object:
        found = await finder.explained(lambda: Explaining(**wanted), head)  # type: ignore[arg-type]
        return found.views

    async def word() -> object:
        named = await finder.named(str(one()), head)
        assert named.found is not None
        return await explained(**named.found)

    print(f"{'':34}{'first':>10}{'median':>10}{'longest':>10}")
    await timed("explain, by id", lambda: explained(generation_id=f"gen-{one():036d}"))
    await timed("explain, by position", word)
    await timed("?tag=", lambda: explained(tag=f"tag-{one() // 2000}", limit=100))
    await timed("100 generations after a position", lambda: explained(after=one(), limit=100))
    wanted = frozenset({ev.SaeAttached.type})
    await timed("events of a type and an SAE", lambda: finder.page(0, head, 16, wanted, A))
    await timed("the last event by a time", lambda: finder.last_by(moment(one()), head))


async def appends(log: SqliteLog, story: Story) -> tuple[float, float]:
    """Microseconds of single appends: the median, and the 99th of a hundred."""
    taken = []
    for each in more(story, log.head.position + 1, APPENDS):
        since = time.perf_counter()
        await log.append([each], expected=log.head.position)
        taken.append((time.perf_counter() - since) * 1e6)
        await asyncio.sleep(0.001)
    taken.sort()
    return taken[len(taken) // 2], taken[int(len(taken) * 0.99)]


async def measured(folder: Path, events: int) -> None:
    taken = await written(folder, events)
    size = (folder / "events.db").stat().st_size
    print(f"\n{events:,} events, {size / 1e6:,.0f} MB, appended in batches in {taken:,.1f} s")
    log = await SqliteLog.open(folder)
    index = IndexDatabase(folder / INDEX)
    since = time.perf_counter()
    await catch_up(log, index)
    made = time.perf_counter() - since
    index.close()
    since = time.perf_counter()
    index = IndexDatabase(folder / INDEX)
    await catch_up(log, index)
    checked = time.perf_counter() - since
    size = (folder / INDEX).stat().st_size
    print(f"index made in {made:,.1f} s, {size / 1e6:,.0f} MB; checked at the next start in {checked:,.2f} s")
    await looks(log, index, log.head.position)
    story = beginning()
    for name, followed in (("without an index", False), ("an index follows", True)) * 2:
        grown = asyncio.Event()
        task = asyncio.create_task(follow(log, index, grown)) if followed else None
        waking = asyncio.create_task(_grows(grown))
        p50, p99 = await appends(log, story)
        print(f"append, {name:26}{p50:10.0f}{p99:10.0f} µs (p50, p99)")
        for each in (waking, task):
            if each is not None:
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each
        await catch_up(log, index)
    print(f"ten times as many: index {made * 10:,.0f} s, check {checked * 10:,.1f} s; a look-up as above")
    index.close()
    await log.close()
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


async def _grows(grown: asyncio.Event) -> None:
    """As a broadcast says it at each append."""
    while True:
        grown.set()
        await asyncio.sleep(0.01)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[100_000])
    parser.add_argument("--folder", type=Path, help="where to write (the disk to be measured); default: temporary")
    arguments = parser.parse_args()
    for events in arguments.events:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            await measured(Path(folder), events)


if __name__ == "__main__":
    asyncio.run(main())
