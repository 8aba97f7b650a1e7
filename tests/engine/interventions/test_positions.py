"""Which positions are meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.domain.refs import NamedPositions, Span
from sae_actor.engine.interventions.positions import END, mask, merged, ranges_of
from sae_actor.errors import BadRequestError


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("all", ((0, END),)),
        ("prompt", ((0, 5),)),
        ("generated", ((5, END),)),
        ("response", ((4, END),)),
        ("last_prompt", ((4, 5),)),
    ],
)
def test_names(name: NamedPositions, covered: tuple[tuple[int, int], ...]) -> None:
    assert ranges_of(name, 5) == covered


def test_spans() -> None:
    assert ranges_of(Span(from_=2), 5) == ((2, END),)
    assert ranges_of(Span(to=2), 5) == ((0, 2),)
    assert ranges_of(Span(from_=1, to=3), 5) == ((1, 3),)
    assert ranges_of(Span(tokens=(9, 1, 2, 2)), 5) == ((1, 3), (9, 10))
    with pytest.raises(BadRequestError):
        ranges_of(Span(role="user"), 5)


@given(st.sets(st.integers(0, 40)), st.integers(0, 30), st.integers(1, 20))
def test_a_mask_is_the_ranges_cut_to_a_step(positions: set[int], start: int, count: int) -> None:
    covered = mask(merged(positions), start, start + count).tolist()
    assert covered == [start + i in positions for i in range(count)]
