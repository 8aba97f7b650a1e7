"""The stream of events: every durable one once and in order, whatever the reader's pace."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from sae_actor.domain import events as ev
from sae_actor.errors import LogError
from sae_actor.subscriptions import PAGE, Broadcast, sse
from sae_actor.subscriptions.broadcast import PAGE_BYTES, Page
from tests.actor.world import turns
from tests.subscriptions.streaming import STARTED, STOPPED, Stream, positions

pytestmark = pytest.mark.anyio


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
    monkeypatch.setattr("sae_actor.subscriptions.broadcast.RING_BYTES", 10_000)
    stream = Stream()
    for _ in range(50):
        await stream.publish(ev.ActorStopped(reason="x" * 1000))
    assert sum(len(frame.data) for frame in stream.broadcast._recent.values()) <= 10_000
    assert await stream.collect(upto=50) == list(range(1, 51))


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


async def test_a_fork_gives_ids_of_its_own() -> None:
    """Also to events from before it that were read already: each stream has one mark."""
    stream = Stream(ring=3)
    await stream.publish(*[STARTED] * 6)
    parent = stream.log.log_id[:8]
    assert await stream.collect(upto=6) == [1, 2, 3, 4, 5, 6]
    head = ev.LogHead(position=6, hash=stream.log.head.hash)
    fork = ev.LogForked(reason="copied", branch_id="ab" * 16, parent_id=stream.log.log_id, parent_head=head)
    await stream.publish(fork, STARTED)
    broadcast = stream.broadcast
    assert broadcast.position_of(f"{parent}.3") is None
    assert [broadcast.position_of(f"abababab.{n}") for n in (3, 8)] == [3, 8]
    async with aclosing(broadcast.read(0)) as pages:
        data = b""
        while b"abababab.8\n" not in data:
            page = await anext(pages)
            assert page is not None
            data += page.data
    assert re.findall(rb"id: (.*)\n", data) == [b"abababab.%d" % n for n in range(1, 9)]


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
    assert sse("reset", {}) == b"event: reset\ndata: {}\n\n"
