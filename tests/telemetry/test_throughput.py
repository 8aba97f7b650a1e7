"""When to come back: from how fast things ended lately."""

from __future__ import annotations

from sae_actor.telemetry.throughput import LONGEST, RECENT, Throughput


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
