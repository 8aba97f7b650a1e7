"""The stream of events: every durable one once and in order, whatever the reader's pace."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from random import Random
from typing import Any

import msgspec
import pytest

from sae_actor.actor import PAGE, Broadcast, Wanted
from sae_actor.actor.broadcast import PAGE_BYTES, RING, Page, names_sae, sse
from sae_actor.domain import events as ev
from sae_actor.domain.events import Payload, draft
from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.errors import LogError
from sae_actor.eventlog.memory import MemoryLog
from sae_actor.ports import Head
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
        self.broadcast = Broadcast(self.log, ring=ring)

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
        wanted = Wanted(None if types is None else frozenset(types))
        with self.broadcast.seat():
            async with aclosing(self.broadcast.read(after, wanted, heartbeat=5)) as pages:
                async for page in pages:
                    assert page is not None
                    seen += positions(page)
                    assert page.after >= max(seen, default=0)
                    if upto is not None and seen[-1] >= upto:
                        break
        return seen


def positions(page: Page) -> list[int]:
    """Of the durable events in a page, as their ids say."""
    return [int(found) for found in re.findall(rb"^id: [0-9a-f]{8}\.(\d+)$", page.data, re.MULTILINE)]


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


class Tape:
    """A log that was written beforehand, of which more and more is there; reading it takes a moment."""

    def __init__(self, events: list[ev.Event], random: Random) -> None:
        self.log_id = "0123456789abcdef" * 2
        self.written = 0
        self.published = 0
        self.events = events
        self._random = random
        self.reads = 0

    @property
    def head(self) -> Head:
        return Head(self.written, self.events[self.written - 1].hash if self.written else "")

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[ev.Event]:
        assert types is None
        self.reads += 1
        for _ in range(self._random.choice((0, 1, 3))):
            await asyncio.sleep(0)
        found = self.events[after : min(after + limit, self.written)]
        for _ in range(self._random.choice((0, 1, 3))):
            await asyncio.sleep(0)
        return found


class Follower:
    """A reader that is cut off again and again, and comes back with the last id that it has."""

    def __init__(self, broadcast: Broadcast, random: Random) -> None:
        self.seen: list[int] = []
        self.first = random.choice((0, 0, broadcast.head))
        self._broadcast = broadcast
        self._random = random

    async def follow(self, *, to_the_end: bool = False) -> None:
        after = self.first
        if self.seen:
            resumed = self._broadcast.position_of(self._broadcast.event_id(self.seen[-1]))
            assert resumed == self.seen[-1]
            after = resumed
        leaves = 1000 if to_the_end else self._random.choice((1, 3, 1000))
        async with aclosing(self._broadcast.read(after)) as pages:
            async for page in pages:
                assert page is not None
                found = positions(page)
                leaves -= 1
                if not leaves:  # cut off within a page
                    self.seen += found[: self._random.randint(0, len(found))]
                    return
                self.seen += found
                for _ in range(self._random.choice((0, 0, 0, 1, 3))):
                    await asyncio.sleep(0)


async def interleave(seed: int, events: list[ev.Event]) -> int:
    """Append, publish, subscribe, replay, cut and resume as the seed decides; how often the log was read."""
    random = Random(seed)
    tape = Tape(events, random)
    tape.written = tape.published = random.choice((0, 0, 5, 17))
    broadcast = Broadcast(tape, ring=random.choice((1, 3, 8, 100)))  # type: ignore[arg-type]  # what is asked of a log
    followers: list[tuple[Follower, asyncio.Task[None]]] = []
    for _ in range(10):
        action = random.random()
        if action < 0.3:
            follower = Follower(broadcast, random)
            followers.append((follower, asyncio.create_task(follower.follow())))
        elif action < 0.5 and followers:
            index = random.randrange(len(followers))
            follower, task = followers[index]
            task.cancel()
            await asyncio.wait([task])
            followers[index] = follower, asyncio.create_task(follower.follow())
        elif action < 0.8:
            tape.written += random.choice((1, 1, 2, 7))
        elif action < 0.9:
            broadcast.announce("model_progress", {"n": 1})
        if random.random() < 0.6:  # else it is durable, not published yet: the log may be ahead of the ring
            broadcast.publish(events[tape.published : tape.written])
            tape.published = tape.written
        for _ in range(random.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
    broadcast.publish(events[tape.published : tape.written])
    broadcast.close()
    for follower, task in followers:
        await asyncio.wait([task])
        await follower.follow(to_the_end=True)  # it may have left: it comes back
        assert follower.seen == list(range(follower.first + 1, tape.written + 1)), seed
    assert not broadcast._resting
    assert not broadcast._loading
    return tape.reads


async def test_row_67_ten_thousand_interleavings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pages of 4 events or 700 bytes, so that a short log has many."""
    monkeypatch.setattr("sae_actor.actor.broadcast.PAGE", 4)
    monkeypatch.setattr("sae_actor.actor.broadcast.PAGE_BYTES", 700)
    stream = Stream()
    await stream.append(*[STARTED] * 120)
    events = list(stream.appended)
    reads = [await interleave(seed, events) for seed in range(10_000)]
    assert sum(count > 1 for count in reads) > 2000, "many of them replay from the log"


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
    await stuck.aclose()


async def test_readers_at_one_place_share_what_was_encoded_joined_and_read() -> None:
    stream = Stream(ring=100)
    await stream.publish(*[STARTED] * 1200)
    reads = 0
    read = stream.log.read

    async def counted(*args: Any, **more: Any) -> list[ev.Event]:
        nonlocal reads
        reads += 1
        return await read(*args, **more)

    stream.log.read = counted  # type: ignore[method-assign]

    async def pages(after: int) -> list[Page]:
        found: list[Page] = []
        async with aclosing(stream.broadcast.read(after)) as source:
            async for page in source:
                assert page is not None
                found.append(page)
                if page.after == 1200:
                    break
        return found

    with stream.broadcast.seat():
        first, *others = await asyncio.gather(*(pages(0) for _ in range(50)))
        elsewhere = await pages(7)
        assert reads == 3, "each page of the log once"
    assert all(a is b for other in others for a, b in zip(first, other, strict=True))
    assert b"".join(page.data for page in first).endswith(b"".join(page.data for page in elsewhere))
    assert all(len(page.data) < PAGE_BYTES + 1000 for page in first)
    assert not stream.broadcast._stored, "nobody reads: nothing is kept"
    assert not stream.broadcast._joined


async def test_news_gathers_for_as_long_as_it_took_to_serve_everyone() -> None:
    """So half of the time is left to others, however many readers there are."""
    stream = Stream()
    pages = 0

    async def busy() -> list[int]:
        nonlocal pages
        seen: list[int] = []
        async for page in stream.broadcast.read(0):
            assert page is not None
            pages += 1
            seen += positions(page)
            time.sleep(0.0004)  # noqa: ASYNC251 - what it takes to send a page
        return seen

    readers = [asyncio.create_task(busy()) for _ in range(50)]
    await turns()
    for _ in range(100):
        await stream.publish(STARTED)
        await asyncio.sleep(0.001)
    stream.broadcast.close()
    assert await asyncio.gather(*readers) == [list(range(1, 101))] * 50
    assert pages < 50 * 50


async def test_a_failed_read_ends_those_who_asked_and_is_tried_again() -> None:
    stream = Stream(ring=1)
    await stream.publish(*[STARTED] * 20)
    read = stream.log.read

    async def broken(*args: Any, **more: Any) -> list[ev.Event]:
        await asyncio.sleep(0)
        raise LogError("gone")

    stream.log.read = broken  # type: ignore[method-assign]
    failed = await asyncio.gather(*(stream.collect(0) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in failed] == [LogError] * 3
    leaving = asyncio.create_task(stream.collect(0))
    await turns(1)
    leaving.cancel()
    await turns()
    stream.log.read = read  # type: ignore[method-assign]
    assert await stream.collect(0, upto=20) == list(range(1, 21))


async def test_the_ring_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_actor.actor.broadcast.RING_BYTES", 10_000)
    stream = Stream()
    for _ in range(50):
        await stream.publish(ev.ActorStopped(reason="x" * 1000))
    assert sum(len(frame.data) for frame in stream.broadcast._recent.values()) <= 10_000
    assert await stream.collect(upto=50) == list(range(1, 51))


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
    async for page in stream.broadcast.read(0, heartbeat=0.005):
        assert page is None
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
    beats: list[Page | None] = []
    async with asyncio.timeout(5):
        async for page in stream.broadcast.read(0, Wanted(frozenset({"ActorStopped"})), heartbeat=0.01):
            beats.append(page)
            if len(beats) == 3:
                break
    publisher.cancel()
    assert beats == [None] * 3


async def test_a_heartbeat_also_where_there_is_always_something_to_say() -> None:
    """It carries the head, which a reader of everything wants as much."""
    stream = Stream()
    beats = 0
    async with asyncio.timeout(5):
        async for page in stream.broadcast.read(0, heartbeat=0.02):
            beats += page is None
            if beats == 3:
                break
            await stream.publish(STARTED)
            await asyncio.sleep(0.001)
    assert stream.broadcast.head > 3


async def test_the_checkpoint_is_the_head() -> None:
    stream = Stream()
    assert stream.broadcast.checkpoint() == sse("checkpoint", msgspec.json.encode(stream.log.head))
    await stream.publish(STARTED, STOPPED)
    assert stream.broadcast.checkpoint() == sse("checkpoint", msgspec.json.encode(stream.log.head))
    assert stream.log.head.position == 2


async def test_what_names_an_sae() -> None:
    stream = Stream()
    chosen = Edit(feature=1, strength=2.0)
    await stream.publish(
        STARTED,
        ev.SteeringChanged(sae_id="one", features=(chosen,)),
        ev.SteeringChanged(sae_id="another", features=(chosen,)),
        ev.AttachRequested(sae_id="another", hook_point=HookPoint(kind="resid_post", layer=1), replaces=("one",)),
        ev.ActorStopped(reason="one"),
        ev.CommandRejected(command="Detach", error=ev.Problem("sae_not_attached", "no"), sae_id="one"),
    )
    stream.broadcast.close()
    found: list[int] = []
    async for page in stream.broadcast.read(0, Wanted(sae_id="one")):
        assert page is not None
        found += positions(page)
    assert found == [2, 4, 6]
    assert names_sae(b'{"intervention":[{"sae_id":"one"}]}', "one")
    assert not names_sae(b'{"tag":"one","intervention":[{"sae_id":"another"}]}', "one")


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
    heard: list[Page] = []

    async def listen() -> None:
        async for page in stream.broadcast.read(0):
            assert page is not None
            heard.append(page)

    listener = asyncio.create_task(listen())
    await turns()
    stream.broadcast.announce("model_progress", {"part": 1})
    await stream.publish(STARTED)
    stream.broadcast.announce("download_progress", {"bytes": 2})
    await turns()
    stream.broadcast.close()
    await listener
    data = b"".join(page.data for page in heard)
    assert sorted(re.findall(rb"event: (\w+)", data)) == [b"ActorStarted", b"download_progress", b"model_progress"]
    assert data.count(b"id: ") == 1
    assert b"early" not in data


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
    async with aclosing(stream.broadcast.read(0)) as pages:
        page = await anext(pages)
    assert page is not None
    assert b"\r" not in page.data
    lines = page.data.decode().split("\n")
    assert lines[0] == f"id: {stream.broadcast.event_id(1)}"
    assert lines[1] == "event: ActorStopped"
    assert lines[3:] == ["", ""]
    data = msgspec.json.decode(lines[2].removeprefix("data: "))
    assert (data["data"]["reason"], data["position"]) == (reason, 1)
    assert data == msgspec.json.decode(msgspec.json.encode((await stream.log.read())[0]))
    assert sse("reset", b"{}") == b"event: reset\ndata: {}\n\n"
