"""Places for admitted generations: which request gets some, and which is refused for now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .running import Requested

BEYOND = 2
"""Times the places: more than that are never taken, whoever asks."""


def has_place(taken: Mapping[str, int], principal: str, count: int, places: int) -> bool:
    """Whether `count` generations of one request are admitted, all together; `count` is at most `places`.

    A free place is enough, also for many: if all had to be free first, small requests would shut a large one out for
    ever. Without a free one, a principal with less than an equal share still gets its own. `taken`: by principal."""
    total = sum(taken.values())
    if total < places:
        return True
    share = max(1, places // len({*taken, principal}))
    return taken.get(principal, 0) + count <= share and total + count <= BEYOND * places


def places_of(party: Sequence[Requested]) -> int:
    """How many it takes: none for texts to score, nor for those of runs."""
    return sum(each.scoring is None and not each.background for each in party)
