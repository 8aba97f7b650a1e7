"""What the port `Engine` promises of texts of runs: they use what nobody else does."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from sae_actor.domain.refs import Edit, Span
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import Finished, GenerationRequest, GenerationStream, Watch
from tests.engine.asking import active, apart, finished, load, no_progress, read, request, scored, scoring
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio


def behind(asked: GenerationRequest) -> GenerationRequest:
    return replace(asked, background=True)


def noted(stream: GenerationStream, name: str, order: list[str]) -> None:
    """Whose items come, in their order."""
    append = stream.append

    def note(item: object) -> None:
        order.append(f"{name}{' ends' if isinstance(item, Finished) else ''}")
        append(item)  # type: ignore[arg-type]

    stream.append = note  # type: ignore[method-assign]


async def test_it_is_as_any_other(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    asked = request(ids, active(5, Edit(feature=3, strength=4.0)), temperature=1.0, seed=7)
    alone = await finished(given.engine, asked)
    assert apart(await finished(given.engine, behind(asked))) == apart(alone)
    asked = scoring(ids[:6], active(5, Edit(feature=3, strength=4.0)), more=ids[6:])
    assert apart((await scored(given.engine, behind(asked)))[0]) == apart((await scored(given.engine, asked))[0])


async def test_it_stands_still_while_another_runs(given: Given) -> None:
    ids, order = await given.ids(), list[str]()
    run = given.engine.generate(behind(request(ids, tokens=60)))
    await run.begun
    noted(run, "run", order)
    other = given.engine.generate(request(ids, tokens=12))
    noted(other, "other", order)
    await asyncio.gather(read(run), read(other))
    first, last = order.index("other"), order.index("other ends")
    assert order[first : last + 1] == ["other"] * 13 + ["other ends"], "its first step, its tokens, its end"


async def test_it_waits_while_another_is_there(given: Given) -> None:
    ids, order = await given.ids(), list[str]()
    other = given.engine.generate(request(ids, tokens=12))
    run = given.engine.generate(behind(request(ids, tokens=3)))
    (mark,) = given.engine.score([behind(scoring(ids))])
    late = given.engine.score([scoring(ids)])[0]
    for stream, name in ((other, "other"), (run, "run"), (mark, "mark"), (late, "late")):
        noted(stream, name, order)
    await asyncio.gather(read(run), read(other), read(mark), read(late))
    assert order.index("run") > max(order.index("other ends"), order.index("late ends"))
    assert order.index("mark") > max(order.index("other ends"), order.index("late ends"))


async def test_it_takes_nobody_s_place(given: Given) -> None:
    """Two run and three wait at most; texts of runs are not counted."""
    ids = await given.ids()
    runs = [given.engine.generate(behind(request(ids, tokens=4))) for _ in range(8)]
    others = [given.engine.generate(request(ids, tokens=4)) for _ in range(5)]
    ends = [(await read(stream))[1].reason for stream in (*runs, *others)]
    assert ends == ["length"] * 13


async def test_its_end_can_be_asked_for_while_it_waits(given: Given) -> None:
    ids = await given.ids()
    other = given.engine.generate(request(ids, tokens=30))
    run = given.engine.generate(behind(request(ids)))
    run.stop()
    assert (await read(run))[1].reason == "cancelled"
    assert (await read(other))[1].reason == "length"


async def test_activations_of_a_continuation(given: Given) -> None:
    """Of all its tokens, if the last one is run."""
    await given.attach(5)
    ids = await given.ids()
    watch = Watch(sae=active(5), features=(1, 2, 3), exclude=("sink",))
    steered = active(5, Edit(feature=3, strength=4.0, positions="prompt"))
    (end,) = await scored(given.engine, behind(scoring(ids[:6], steered, more=ids[6:], last=True, watched=(watch,))))
    whole = await finished(given.engine, request(ids, replace(steered, steering=(
        replace(steered.steering[0], positions=Span(from_=0, to=6)),)), tokens=0, watched=(watch,)))  # fmt: skip
    (told,), (plain,) = end.activations, whole.activations
    assert (told.first, len(told.rows)) == (0, len(ids))
    for row, other in zip(told.rows, plain.rows, strict=True):
        assert [each.feature for each in row] == [1, 2, 3]
        assert [each.activation for each in row] == pytest.approx([each.activation for each in other], abs=1e-5)


async def test_it_gives_way_where_memory_is_short(tiny_llama: object) -> None:
    """384 bytes a position, and as many again where a text moves to another tensor."""
    engine = TorchEngine(EngineSettings(threads=1, cache_bytes=110_000))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    ids = (await engine.tokenize("hello world")).token_ids
    try:
        run = engine.generate(behind(request(ids, tokens=110)))
        await run.begun
        other = engine.generate(request(ids, tokens=110))
        assert (await read(other))[1].reason == "length"
        assert (await read(run))[1].reason == "cancelled"
    finally:
        await engine.close()
