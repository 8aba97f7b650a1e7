"""Limiters: in order, a few at a time, and never stuck."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.limits import LONGEST, RECENT, FairQueue, RequestThrottle, Throughput

pytestmark = pytest.mark.anyio


async def turns_of(turnstile: RequestThrottle, count: int) -> list[tuple[int, int]]:
    """Who entered, and in which turn of the loop."""
    turn = 0
    entered: list[tuple[int, int]] = []

    async def visitor(number: int) -> None:
        await turnstile.enter()
        entered.append((number, turn))

    visitors = [asyncio.create_task(visitor(number)) for number in range(count)]
    while not all(each.done() for each in visitors):
        turn += 1
        assert turn < 10 * count
        await asyncio.sleep(0)
    return entered


async def test_all_enter_in_order_and_few_at_once() -> None:
    entered = await turns_of(RequestThrottle(3), 20)
    assert [number for number, _ in entered] == list(range(20))
    turns = [turn for _, turn in entered]
    assert max(turns.count(turn) for turn in turns) == 3
    assert max(turns) - min(turns) <= 2 * 20 / 3 + 1


async def test_alone_nobody_waits() -> None:
    turnstile = RequestThrottle(1)
    for _ in range(5):
        entering = turnstile.enter()
        with pytest.raises(StopIteration):  # it ends without having waited for anything
            entering.send(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_who_gives_up_keeps_nobody_waiting() -> None:
    turnstile = RequestThrottle(1)
    visitors = [asyncio.create_task(turnstile.enter()) for _ in range(10)]
    await asyncio.sleep(0)
    for each in visitors[2:9]:
        each.cancel()
    done = await asyncio.wait_for(asyncio.gather(*visitors, return_exceptions=True), 5)
    assert [isinstance(each, asyncio.CancelledError) for each in done] == [False] * 2 + [True] * 7 + [False]
    await asyncio.wait_for(turnstile.enter(), 5)


def test_the_wait_follows_the_pace_of_the_last_ends() -> None:
    now = 100.0
    pace = Throughput(clock=lambda: now)
    assert pace.seconds_for(1000) == 1, "nothing is known yet"
    for _ in range(RECENT):
        pace.ended()
        now += 10.0
    for _ in range(RECENT):
        pace.ended()
        now += 0.25
    assert [pace.seconds_for(count) for count in (0, 1, 4, 5, 80)] == [1, 1, 2, 2, 21]
    assert pace.seconds_for(100_000) == LONGEST
    now += 63 * 1.75
    assert pace.seconds_for(4) == 9, "nothing has ended since: it may take longer"


# — whose turn it is —


@given(st.lists(st.sampled_from("abcd") | st.none(), max_size=200))
def test_each_share_has_its_turn(acts: list[str | None]) -> None:
    """A share queues something, or (None) the first is taken."""
    queue, waiting, number = FairQueue[tuple[str, int]](), dict[str, list[int]](), 0
    passed = dict[str, Counter[str]]()
    for act in [*acts, *[None] * len(acts)]:
        if act is not None:
            queue.push(act, (act, number))
            if not waiting.setdefault(act, []):
                passed[act] = Counter()
            waiting[act].append(number)
            number += 1
        elif not queue:
            continue
        else:
            first = queue.first
            share, item = queue.pop()
            assert (share, item) == first
            assert waiting[share].pop(0) == item, "in order within a share"
            passed[share] = Counter()
            for other, items in waiting.items():
                if items and other != share:
                    passed[other][share] += 1
            assert all(count == 1 for other, items in waiting.items() if items for count in passed[other].values())
        assert len(queue) == len(list(queue)) == sum(map(len, waiting.values()))
    assert not queue


def test_the_next_text_of_another_starts_after_at_most_one() -> None:
    queue = FairQueue[str]()
    for n in range(100):
        queue.push("a", f"a{n}")
    assert queue.pop() == "a0"
    for n in range(3):
        queue.push("b", f"b{n}")
    assert [queue.pop() for _ in range(8)] == ["a1", "b0", "a2", "b1", "a3", "b2", "a4", "a5"]
    queue.keep(lambda item: item == "a50")
    assert list(queue) == ["a50"]
    queue.clear()
    assert not queue
