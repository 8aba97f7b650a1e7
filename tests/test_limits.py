"""Limiters: in order, a few at a time, and never stuck."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

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
    for _ in range(2 * RECENT + 1):
        pace.began()
    now += 5.0
    assert pace.seconds_for(3) == 15, "none has ended in five seconds"
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


def test_a_time_without_work_says_nothing() -> None:
    now = 0.0
    pace = Throughput(clock=lambda: now)
    for _ in range(4):
        now += 3600.0
        pace.began()
        now += 2.0
        pace.ended()
    assert pace.seconds_for(3) == 6
    pace.began()
    now += 0.5
    pace.ended(counts=False)
    now += 3600.0
    assert pace.seconds_for(8) == 17, "who gave up has ended nothing, in the time that it took"


# — whose turn it is —


class Line:
    """Everybody takes from a `FairQueue`, within limits."""

    def __init__(self, most: dict[str, int]) -> None:
        self.queue = FairQueue[int]()
        self.most = most
        self.running = Counter[str]()
        self.waiting = dict[str, list[int]]()
        self.passed = dict[str, Counter[str]]()
        """Share → whom it has let past since it could have gone."""

    def may(self, share: str) -> bool:
        return bool(self.waiting.get(share)) and self.running[share] < self.most.get(share, 10**9)

    def push(self, share: str, number: int) -> None:
        if not self.may(share):
            self.passed[share] = Counter()
        self.queue.push(share, number)
        self.waiting.setdefault(share, []).append(number)

    def end(self, share: str) -> None:
        if not self.may(share):
            self.passed[share] = Counter()
        self.running[share] -= 1

    def take(self) -> str | None:
        share = self.queue.turn(self.most, self.running)
        able = [each for each in self.waiting if self.may(each)]
        assert (share in able) if able else share is None, "who may go goes, and nobody else"
        if share is None:
            return None
        first = self.queue.first(share)
        assert self.queue.take(share) == [first]
        assert self.waiting[share].pop(0) == first, "in order within a share"
        self.running[share] += 1
        self.passed[share] = Counter()
        for other in able:
            if other != share and self.may(other):
                self.passed[other][share] += 1
                assert self.passed[other][share] == 1, "at most one of each other's before its own"
        assert len(self.queue) == len(list(self.queue)) == sum(map(len, self.waiting.values()))
        return share


SHARES = [f"principal {n}" for n in range(50)]
ACTS = st.tuples(st.sampled_from(["push", "push", "take", "take", "end"]), st.sampled_from(SHARES))
LIMITS = st.dictionaries(st.sampled_from(SHARES), st.integers(1, 3))


@given(LIMITS, st.lists(ACTS, max_size=300))
def test_each_share_has_its_turn_and_no_more_than_it_may(most: dict[str, int], acts: list[tuple[str, str]]) -> None:
    line, number = Line(most), 0
    for act, share in acts:
        if act == "push":
            line.push(share, number)
            number += 1
        elif act == "take":
            line.take()
        elif line.running[share]:
            line.end(share)
        assert all(line.running[each] <= limit for each, limit in most.items())
    while line.queue:
        if line.take() is None:
            line.end(next(each for each, count in line.running.items() if count))
    assert not any(line.waiting.values()), "everybody has had its turn"


@given(LIMITS, st.lists(st.sampled_from(SHARES), min_size=1, max_size=120), st.integers(1, 8), st.randoms())
def test_nobody_starves_however_much_others_ask(
    most: dict[str, int], asked: list[str], places: int, chance: Any
) -> None:
    """With every end somebody asks for more, and one text of everybody's gets done all the same."""
    line, ends = Line(most), 0
    for share in asked:
        line.push(share, 0)
    last = dict.fromkeys(asked)
    busy = next(iter(last))
    running: list[str] = []
    while last:
        while len(running) < places and (taken := line.take()) is not None:
            running.append(taken)
            last.pop(taken, None)
        ended = running.pop(chance.randrange(len(running)))
        line.end(ended)
        line.push(busy, 0)
        ends += 1
        assert ends <= places + 2 * len(asked) + len(most), "a round of everybody's"


def test_the_next_text_of_another_starts_after_at_most_one() -> None:
    queue, running = FairQueue[str](), Counter[str]()
    for n in range(100):
        queue.push("a", f"a{n}")

    def took(most: dict[str, int]) -> str | None:
        share = queue.turn(most, running)
        return None if share is None else queue.take(share)[0]

    assert took({}) == "a0"
    for n in range(3):
        queue.push("b", f"b{n}")
    assert [took({}) for _ in range(4)] == ["a1", "b0", "a2", "b1"]
    running["a"] = 2
    assert [took({"a": 2}) for _ in range(2)] == ["b2", None]
    running["a"] = 1
    assert [took({"a": 2}), queue.take("a", 3)] == ["a3", ["a4", "a5", "a6"]]
    queue.keep(lambda item: item == "a50")
    assert list(queue) == ["a50"]
    queue.clear()
    assert not queue
    assert queue.turn({}, running) is None
