"""What is looked up by the index is what reading all of the log says."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_actor.eventlog.index import Finder, IndexDatabase, catch_up, database, finder, follower, histories, questions
from tests.fakes.log import MemoryLog

from .lives import ATTACHED, busy, lived, looked_up, plainly, redacted


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    """Pages, chunks and blocks of a few events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "CHUNK", 3)
        for module in (database, finder, questions):
            patch.setattr(module, "BLOCK", 4)
        for module in (finder, follower, histories):
            patch.setattr(module, "PAGE", 5)
        yield


class UpTo(MemoryLog):
    """A log as it was a while ago, for the index alone."""

    def __init__(self, log: MemoryLog, position: int) -> None:
        super().__init__()
        self._log_id, self._rows = log._log_id, log._rows[:position]
        if self._rows:
            self._head = type(self._head)(position, self._rows[-1].hash.hex())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    script=st.lists(busy, min_size=10, max_size=60),
    room=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    erase=st.booleans(),
)
def test_every_look_up_in_any_log(script: Any, room: int, seed: int, share: float, erase: bool) -> None:
    async def live() -> None:
        chance, log = random.Random(seed), MemoryLog()
        drafts = lived([*ATTACHED, *script], room, chance)
        await log.append(drafts, expected=0)
        before = int(share * len(drafts))
        index = IndexDatabase(None)
        if erase and chance.random() < 0.5:
            await redacted(log, chance)
        await catch_up(UpTo(log, before), index)
        assert index.head.position == before
        if erase:
            await redacted(log, chance)
        expected = await plainly(log)
        behind = Finder(log, index)
        if not erase:
            assert behind.upto == before
            assert await looked_up(behind) == expected
        await catch_up(log, index)
        assert behind.upto == log.head.position
        assert await looked_up(behind) == expected
        assert index.trusted
        assert index.check()
        assert await looked_up(Finder.without_index(log)) == expected
        index.close()

    asyncio.run(live())
