"""What a sweep comes to, of any number of rows."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sae_actor.domain.measuring.sweeps import swept

FINITE = st.floats(min_value=-1e300, max_value=1e300)


def row(value: float | None, **more: Any) -> dict[str, Any]:
    ended = {"finish_reason": "length", "receipt": {"tokens_generated": 2}}
    return {"variant": "bold", **ended, "ce_unsteered": value, **more}


@given(st.lists(st.one_of(st.none(), FINITE), max_size=40))
def test_means_are_those_of_the_exact_sum(values: list[float | None]) -> None:
    there = [value for value in values if value is not None]
    (found,) = swept(["bold"], map(row, values))
    assert found["rows"] == len(values)
    assert found["ce_unsteered"] == (math.fsum(there) / len(there) if there else None)


def test_a_redacted_row_is_counted_and_has_no_part_in_a_mean() -> None:
    rows = [row(1.0, continuation_logprobs=[-1.0, -2.0]), {"variant": "bold", "redacted": True},
            row(0.1, continuation_logprobs=[-3.0, None])]  # fmt: skip
    (found,) = swept(["bold"], rows)
    assert (found["rows"], found["ce_unsteered"]) == (3, 0.55)
    assert found["continuation_logprobs"] == [-2.0, -2.0]
    assert found["finish_reasons"] == {"length": 2}
