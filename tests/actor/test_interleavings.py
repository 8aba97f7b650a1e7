"""The stream of events under every order of what can happen: each durable one once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from random import Random

import pytest

from sae_actor.domain import events as ev
from sae_actor.ports import Head
from sae_actor.subscriptions import Broadcast
from tests.subscriptions.streaming import STARTED, Stream, positions

pytestmark = pytest.mark.anyio


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
    monkeypatch.setattr("sae_actor.subscriptions.broadcast.PAGE", 4)
    monkeypatch.setattr("sae_actor.subscriptions.broadcast.PAGE_BYTES", 700)
    stream = Stream()
    await stream.append(*[STARTED] * 120)
    events = list(stream.appended)
    reads = [await interleave(seed, events) for seed in range(10_000)]
    assert sum(count > 1 for count in reads) > 2000, "many of them replay from the log"
