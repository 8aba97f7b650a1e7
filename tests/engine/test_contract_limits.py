"""What the port `Engine` promises of texts of one share that may not all run at a time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from msgspec.structs import replace

from sae_actor.domain.refs import Edit
from sae_actor.ports import GenerationRequest, GenerationStream
from tests.engine.asking import active, read, request, scored, scoring
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio


class Seen:
    """What begins and ends, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def follow(self, name: str, stream: GenerationStream) -> GenerationStream:
        stream.begun.add_done_callback(lambda _: self._begun(name))
        stream.finished.add_done_callback(lambda _: self._ended(name))
        return stream

    def _begun(self, name: str) -> None:
        self.order.append(f"{name} begins")
        self.running[name[0]] += 1
        self.most[name[0]] = max(self.most[name[0]], self.running[name[0]])

    def _ended(self, name: str) -> None:
        self.order.append(f"{name} ends")
        self.running[name[0]] -= 1


def of(asked: GenerationRequest, share: str) -> GenerationRequest:
    return replace(asked, share=share)


async def test_of_a_share_no_more_run_than_it_may(given: Given) -> None:
    """Two could run. Whoever has had its turn waits for its own; the other goes past it."""
    ids, seen, engine = await given.ids(), Seen(), given.engine
    engine.limit({"a": 1, "nobody": 1})
    streams = [
        seen.follow(name, engine.generate(of(request(ids, tokens=6), name[0]))) for name in ("a1", "a2", "a3", "b1")
    ]
    await asyncio.gather(*map(read, streams))
    begins = [each.split()[0] for each in seen.order if each.endswith("begins")]
    assert begins[:2] == ["a1", "b1"]
    assert [each for each in begins if each[0] == "a"] == ["a1", "a2", "a3"]
    assert seen.most == {"a": 1, "b": 1}


async def test_another_limit_holds_for_what_waits(given: Given) -> None:
    ids, seen, engine = await given.ids(), Seen(), given.engine
    engine.limit({"a": 1})
    streams = [seen.follow(name, engine.generate(of(request(ids, tokens=100), "a"))) for name in ("a1", "a2")]
    await streams[0].begun
    engine.limit({})
    await asyncio.gather(*map(read, streams))
    assert seen.order[:2] == ["a1 begins", "a2 begins"]


async def test_texts_to_score_are_limited_too(given: Given) -> None:
    ids, seen, engine = await given.ids(), Seen(), given.engine
    engine.limit({"a": 1})
    streams = [
        seen.follow(name, engine.score([of(scoring(ids, more=ids), name[0])])[0]) for name in ("a1", "a2", "a3", "b1")
    ]
    await asyncio.gather(*map(read, streams))
    assert seen.most == {"a": 1, "b": 1}


async def test_one_text_under_several_interventions_counts_once(given: Given) -> None:
    await given.attach(5)
    ids, engine = await given.ids(), given.engine
    engine.limit({"a": 1})
    steered = scoring(ids, active(5, Edit(feature=3, strength=4.0, exclude=())), more=ids)
    ends = await scored(engine, of(scoring(ids, more=ids), "a"), of(steered, "a"), baseline=0)
    assert [end.reason for end in ends] == ["length", "length"]
    assert all(end.scores is not None for end in ends)


async def test_of_texts_to_score_each_share_has_its_turn(given: Given) -> None:
    ids, seen, engine = await given.ids(), Seen(), given.engine
    names = ("a1", "a2", "a3", "a4", "b1")
    streams = [seen.follow(name, engine.score([of(scoring(ids, more=ids), name[0])])[0]) for name in names]
    await asyncio.gather(*map(read, streams))
    begins = [each.split()[0] for each in seen.order if each.endswith("begins")]
    assert begins.index("b1") < begins.index("a4")
