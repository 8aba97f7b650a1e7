"""The engine that is made at the first load."""

from __future__ import annotations

import gc

import pytest

from sae_actor.service.lazy_engine import LazyEngine
from tests.engine.asking import load, no_progress
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_an_engine_that_could_not_be_made_is_made_by_the_next_load() -> None:
    made: list[int] = []

    def make() -> FakeEngine:
        made.append(len(made))
        if len(made) == 1:
            raise MemoryError("for a moment")
        return FakeEngine()

    async def nothing(*_: object, **__: object) -> None:
        pass

    engine = LazyEngine(make, nothing)
    with pytest.raises(MemoryError):
        await engine.load_model(load("org/tiny"), no_progress)
    assert (await engine.load_model(load("org/tiny"), no_progress)).model_id == "org/tiny"
    await engine.load_model(load("org/other", at=2), no_progress)
    assert len(made) == 2


async def test_what_its_libraries_bring_is_not_looked_through_again() -> None:
    """A full collection holds everything up; what a model brings may have to be collected."""
    brought: list[object] = []

    def make() -> FakeEngine:
        brought.extend([] for _ in range(10_000))
        return FakeEngine()

    async def nothing(*_: object, **__: object) -> None:
        loaded.append([])

    loaded: list[object] = []
    engine = LazyEngine(make, nothing)
    try:
        await engine.load_model(load("org/tiny"), no_progress)
        looked_through = set(map(id, gc.get_objects()))
        assert not any(id(each) in looked_through for each in brought)
        assert id(loaded[0]) in looked_through
    finally:
        gc.unfreeze()
