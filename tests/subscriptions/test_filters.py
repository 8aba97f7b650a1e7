"""The stream of events: what its filter leaves, heartbeats, passing events, its end."""

from __future__ import annotations

import asyncio
import re

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.events.mentions import names_sae
from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.subscriptions import EventFilter, sse
from sae_actor.subscriptions.broadcast import Page
from tests.actor.world import turns
from tests.subscriptions.streaming import STARTED, STOPPED, Stream, positions

pytestmark = pytest.mark.anyio


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
        async for page in stream.broadcast.read(0, EventFilter(frozenset({"ActorStopped"})), heartbeat=0.01):
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
    assert stream.broadcast.checkpoint() == sse("checkpoint", stream.log.head)
    await stream.publish(STARTED, STOPPED)
    assert stream.broadcast.checkpoint() == sse("checkpoint", stream.log.head)
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
    async for page in stream.broadcast.read(0, EventFilter(sae_id="one")):
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
