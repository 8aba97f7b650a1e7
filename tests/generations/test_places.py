"""A request gets all of its places, or waits for its turn like any other; each principal has its share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.generations.places import BEYOND, has_place


@pytest.mark.parametrize(
    ("taken", "count", "expected"),
    [
        ({}, 96, True),
        ({"a": 64}, 64, True),
        ({"a": 95}, 96, True),
        ({"a": 96}, 1, False),
        ({"b": 96}, 48, True),
        ({"b": 96}, 49, False),
        ({"b": 96, "a": 47}, 1, True),
        ({"b": 96, "a": 48}, 1, False),
        ({"b": 120, "c": 60}, 13, False),
        ({"b": 120, "c": 60}, 12, True),
    ],
)
def test_who_gets_places(taken: dict[str, int], count: int, expected: bool) -> None:
    """Of 96, for "a"."""
    assert has_place(taken, "a", count, 96) is expected


ASKS = st.tuples(st.sampled_from("abcde"), st.integers(1, 20))


@given(st.lists(ASKS, max_size=60), st.integers(1, 20))
def test_bounds(asks: list[tuple[str, int]], places: int) -> None:
    taken = Counter[str]()
    for principal, count in asks:
        if count > places:
            continue
        free = taken.total() < places
        if has_place(taken, principal, count, places):
            taken[principal] += count
        else:
            assert not free, "with a place free nobody is refused"
        assert taken.total() <= BEYOND * places


def test_one_who_asks_first_leaves_room_for_fifty_others() -> None:
    taken = Counter(first=96)
    for n in range(50):
        assert has_place(taken, f"principal {n}", 1, 96)
        taken[f"principal {n}"] += 1
    assert not has_place(taken, "first", 1, 96)
