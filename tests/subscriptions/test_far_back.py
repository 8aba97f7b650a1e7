"""A reader far back who wants few events of many gets them by the index: the log between them is not read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.refs import Edit
from sae_actor.eventlog.index import Finder, IndexDatabase, catch_up
from sae_actor.subscriptions import EventFilter
from tests.subscriptions.streaming import STARTED, STOPPED, Stream, positions

pytestmark = pytest.mark.anyio

STEERED = ev.SteeringChanged(sae_id="one", features=(Edit(feature=1, strength=2.0),))


async def collected(stream: Stream, wanted: EventFilter, after: int = 0) -> list[int]:
    found: list[int] = []
    async for page in stream.broadcast.read(after, wanted):
        assert page is not None
        found += positions(page)
    return found


@pytest.mark.parametrize("behind", [0, 700])
async def test_what_a_filter_takes(behind: int) -> None:
    stream = Stream(ring=8)
    expected = []
    for number in range(3000):
        rare = number % 600 == 7
        await stream.publish(STEERED if rare else STARTED if number % 2 else STOPPED)
        expected += [number + 1] if rare else []
        if number == 2999 - behind:
            index = IndexDatabase(None)
            await catch_up(stream.log, index)
    finder = Finder(stream.log, index)
    stream.broadcast.look_up = finder.skipping
    reads: list[int] = []
    read = stream.log.read

    async def counted(after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[ev.Event]:
        reads.append(after)
        return await read(after, limit, types)

    stream.log.read = counted  # type: ignore[method-assign]
    stream.broadcast.close()
    for wanted in (EventFilter(types=frozenset({STEERED.type})), EventFilter(sae_id="one")):
        assert await collected(stream, wanted) == expected
        assert await collected(stream, wanted, after=expected[2]) == expected[3:]
    assert all(after >= 3000 - behind - 500 for after in reads), "what the index has is not read through"
    assert await collected(stream, EventFilter(types=frozenset({"GpuLost"}))) == []
    assert await collected(stream, EventFilter()) == [*range(1, 3001)]
    index.distrust()
    assert await collected(stream, EventFilter(sae_id="one")) == expected
    index.close()
