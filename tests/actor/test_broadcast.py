"""The stream of events: every durable one once and in order, whatever the reader's pace."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from random import Random
from typing import Any

import msgspec
import pytest

from sae_actor.actor import PAGE, Broadcast
from sae_actor.actor.broadcast import RING, Frame, sse
from sae_actor.domain import events as ev
from sae_actor.domain.events import Payload, draft
from sae_actor.eventlog.memory import MemoryLog
from tests.actor.world import turns

pytestmark = pytest.mark.anyio

STOPPED, STARTED = ev.ActorStopped(), ev.ActorStarted(version="1")


class Slow(MemoryLog):
    """Reads take a moment, in which more is published."""

    async def read(self, *args: Any, **more: Any) -> list[ev.Event]:
        await asyncio.sleep(0)
        found = await super().read(*args, **more)
        await asyncio.sleep(0)
        return found


class Stream:
    """A log and its broadcast."""

    def __init__(self, ring: int = RING) -> None:
        self.log = Slow()
        self.broadcast = Broadcast(self.log)
        self.broadcast._recent = type(self.broadcast._recent)(maxlen=ring)

    async def append(self, *payloads: Payload) -> None:
        """Durable, and not published yet."""
        made = [draft(each, time="t", command_id=None, principal="me") for each in payloads]
        self.appended = await self.log.append(made, expected=self.log.head.position)

    async def publish(self, *payloads: Payload) -> None:
        await self.append(*payloads)
        self.broadcast.publish(self.appended)

    async def collect(self, after: int = 0, *, types: set[str] | None = None, upto: int | None = None) -> list[int]:
        """Positions as a reader sees them, to the end of the stream or to position `upto`."""
        seen: list[int] = []
        async with aclosing(self.broadcast.read(after, types=types, heartbeat=5)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                assert frame is not None
                assert frame.position is not None
                seen.append(frame.position)
                if frame.position == upto:
                    break
        return seen


# — once, in order —


async def test_from_the_ring_from_the_log_and_live() -> None:
    stream = Stream(ring=10)
    for _ in range(30):
        await stream.publish(STARTED)
    readers = [asyncio.create_task(stream.collect(after)) for after in (0, 15, 25, 30, 99)]
    await turns()
    for _ in range(5):
        await stream.publish(STOPPED)
        await turns(3)
    stream.broadcast.close()
    seen = await asyncio.gather(*readers)
    assert seen == [
        list(range(1, 36)),
        list(range(16, 36)),
        list(range(26, 36)),
        list(range(31, 36)),
        [],
    ]
    assert stream.broadcast.readers == 0


@pytest.mark.parametrize("seed", range(40))
async def test_random_interleavings(seed: int) -> None:
    """Row 67, 250 steps a seed: readers come, lag and go while events are stored and published."""
    random = Random(seed)
    stream = Stream(ring=random.choice([1, 3, 10, 100]))
    results: list[tuple[int, list[int]]] = []

    async def reader(after: int) -> None:
        seen: list[int] = []
        results.append((after, seen))
        stop = random.randrange(300)
        async with aclosing(stream.broadcast.read(after)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                assert frame is not None
                if frame.position is not None:
                    seen.append(frame.position)
                if len(seen) >= stop:
                    return
                for _ in range(random.choice([0, 0, 0, 1, 5])):
                    await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(250):
        action = random.random()
        if action < 0.3:
            tasks.append(asyncio.create_task(reader(random.randint(0, stream.log.head.position))))
        elif action < 0.7:
            await stream.append(*[STARTED] * random.choice([1, 1, 2, 7]))
            for _ in range(random.choice([0, 1, 3])):
                await asyncio.sleep(0)  # durable, not published: a reader of the log may be ahead of the ring
            stream.broadcast.publish(stream.appended)
        elif action < 0.8:
            stream.broadcast.announce("model_progress", {"n": 1})
        else:
            await asyncio.sleep(0)
    stream.broadcast.close()
    await asyncio.gather(*tasks)
    head = stream.log.head.position
    for after, seen in results:
        assert seen == list(range(after + 1, after + 1 + len(seen)))
        assert len(seen) <= head - after
    assert stream.broadcast.readers == 0
    assert stream.broadcast._news is None or stream.broadcast._news.done()


async def test_more_than_a_page() -> None:
    stream = Stream(ring=2 * PAGE + 7)
    await stream.publish(*[STARTED] * 2000)
    assert await stream.collect(upto=2000) == list(range(1, 2001))
    assert await stream.collect(1990, upto=2000) == list(range(1991, 2001))


async def test_a_broadcast_on_a_log_with_a_past() -> None:
    stream = Stream()
    await stream.publish(*[STARTED] * 20)
    stream.broadcast = Broadcast(stream.log)
    reading = asyncio.create_task(stream.collect(5))
    await turns()
    await stream.publish(STOPPED)
    stream.broadcast.close()
    assert await reading == list(range(6, 22))


async def test_a_reader_that_stops_for_ever_holds_up_no_one() -> None:
    stream = Stream(ring=10)
    stuck = stream.broadcast.read(0)
    await stream.publish(STARTED)
    await anext(stuck)
    reading = asyncio.create_task(stream.collect(0, upto=10_001))
    began = time.perf_counter()
    for _ in range(1000):
        await stream.publish(*[STARTED] * 10)
    assert time.perf_counter() - began < 5
    assert len(await reading) == 10_001
    assert stream.broadcast.readers == 1
    await stuck.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert stream.broadcast.readers == 0


# — filter, heartbeat, close —


async def test_types() -> None:
    stream = Stream()
    await stream.publish(STARTED, STOPPED, STARTED)
    reading = asyncio.create_task(stream.collect(types={"ActorStopped"}))
    await turns()
    await stream.publish(STARTED, STOPPED)
    stream.broadcast.close()
    assert await reading == [2, 5]
    assert await stream.collect(types=set()) == []


async def test_heartbeats() -> None:
    stream = Stream()
    beats = 0
    async for frame in stream.broadcast.read(0, heartbeat=0.005):
        assert frame is None
        beats += 1
        if beats == 3:
            break


async def test_a_heartbeat_also_where_the_filter_leaves_everything_out() -> None:
    stream = Stream()

    async def busy() -> None:
        while True:
            await stream.publish(STARTED)
            await asyncio.sleep(0.001)

    publisher = asyncio.create_task(busy())
    beats: list[Frame | None] = []
    async with asyncio.timeout(5):
        async for frame in stream.broadcast.read(0, types={"ActorStopped"}, heartbeat=0.01):
            beats.append(frame)
            if len(beats) == 3:
                break
    publisher.cancel()
    assert beats == [None] * 3


async def test_no_heartbeat_while_there_is_something_to_say() -> None:
    stream = Stream()
    reading = asyncio.create_task(stream.collect(upto=20))
    for _ in range(20):
        await asyncio.sleep(0.001)
        await stream.publish(STARTED)
    assert len(await reading) == 20


async def test_close_ends_readers_after_what_they_are_owed() -> None:
    stream = Stream(ring=5)
    await stream.publish(*[STARTED] * 100)
    readers = [asyncio.create_task(stream.collect(after)) for after in (0, 100)]
    await turns(3)
    stream.broadcast.close()
    assert [len(each) for each in await asyncio.gather(*readers)] == [100, 0]
    assert await stream.collect(99) == [100]


async def test_a_cancelled_reader_leaves() -> None:
    stream = Stream()
    readers = [asyncio.create_task(stream.collect()) for _ in range(100)]
    await turns()
    assert stream.broadcast.readers == 100
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    assert stream.broadcast.readers == 0
    await stream.publish(STARTED)


# — passing events —


async def test_passing_events_have_no_id_and_only_those_who_listen_hear_them() -> None:
    stream = Stream()
    stream.broadcast.announce("model_progress", {"early": True})
    heard: list[Frame] = []

    async def listen() -> None:
        async for frame in stream.broadcast.read(0):
            assert frame is not None
            heard.append(frame)

    listener = asyncio.create_task(listen())
    await turns()
    stream.broadcast.announce("model_progress", {"part": 1})
    await stream.publish(STARTED)
    stream.broadcast.announce("download_progress", {"bytes": 2})
    await turns()
    stream.broadcast.close()
    await listener
    assert sorted((frame.type, frame.position) for frame in heard) == [
        ("ActorStarted", 1), ("download_progress", None), ("model_progress", None),
    ]  # fmt: skip
    assert not any(b"\nid:" in b"\n" + frame.data for frame in heard if frame.position is None)


async def test_a_flood_of_passing_events_is_thinned_and_loses_nothing_durable() -> None:
    stream = Stream()
    listener = asyncio.create_task(stream.collect(types={"ActorStarted"}))
    await turns()
    for i in range(10_000):
        stream.broadcast.announce("model_progress", {"n": i})
        if i % 1000 == 0:
            await stream.publish(STARTED)
    stream.broadcast.close()
    assert await listener == list(range(1, 11))
    assert len(stream.broadcast._passing) <= 256


# — the bytes —


async def test_ids() -> None:
    stream = Stream()
    await stream.publish(STARTED, STARTED)
    broadcast, mark = stream.broadcast, stream.log.log_id[:8]
    assert broadcast.event_id(2) == f"{mark}.2"
    assert [broadcast.position_of(f"{mark}.{n}") for n in (0, 1, 2)] == [0, 1, 2]
    for bad in (f"{mark}.3", f"{mark}.-1", "00000000.1", f"{mark}", f"{mark}.", "", "abc", "1", f"{mark}.{10**30}",
                f"{mark}.1\0", f"{mark}.²", f"{mark}.1.1", f"{mark.upper()}x.1", f"{mark}.٣"):  # fmt: skip
        assert broadcast.position_of(bad) is None, bad


async def test_a_frame_is_one_event_whatever_is_in_it() -> None:
    stream = Stream()
    reason = "line\r\nfeed\u2028para\u2029emoji😀\0end\ndata: x"
    await stream.publish(ev.ActorStopped(reason=reason))
    async with aclosing(stream.broadcast.read(0)) as frames:  # type: ignore[type-var]
        frame = await anext(frames)
    assert frame is not None
    assert b"\r" not in frame.data
    lines = frame.data.decode().split("\n")
    assert lines[0] == f"id: {stream.broadcast.event_id(1)}"
    assert lines[1] == "event: ActorStopped"
    assert lines[3:] == ["", ""]
    data = msgspec.json.decode(lines[2].removeprefix("data: "))
    assert (data["data"]["reason"], data["position"]) == (reason, 1)
    assert data == msgspec.json.decode(msgspec.json.encode((await stream.log.read())[0]))
    assert sse("reset", b"{}") == b"event: reset\ndata: {}\n\n"
