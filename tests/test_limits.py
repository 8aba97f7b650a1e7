"""Limiters: in order, a few at a time, and never stuck."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.limits import LONGEST, RECENT, RequestThrottle, Throughput

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
