"""What the port `Engine` tells of whole prompts: features pooled, activations themselves, the lens."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import msgspec
import pytest

from sae_actor.domain.refs import HookPoint
from sae_actor.engine import TorchEngine
from sae_actor.engine.settings import EngineSettings
from sae_actor.ports import Activations, Engine, Pooling, TokenScore, Watch
from tests.engine.asking import POINT, active, attach, load, no_progress, read, request
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

D_SAE = 24


async def told(engine: Engine, ids: tuple[int, ...], *watched: Watch) -> tuple[Activations, ...]:
    (token,), _ = await read(engine.generate(request(ids, tokens=1, watched=watched)))
    return token.activations


def floats(data: bytes) -> list[float]:
    return list(array("f", data))


@pytest.mark.parametrize("how", ["max", "mean", "last"])
async def test_features_are_pooled_over_what_is_counted(given: Given, how: Pooling) -> None:
    await given.attach(5)
    ids = (*(await given.ids("hello ")), 256, *(await given.ids("world")))
    every = Watch(sae=active(5), features=tuple(range(D_SAE)))
    pooled = Watch(sae=active(5), pooling=how, exclude=("sink", "special"))
    each, of_all, beside = await told(given.engine, ids, every, pooled, Watch(sae=active(5), pooling=how))
    rows = [[one.activation for one in row] for row in each.rows]
    for found, left in ((of_all, {0, 6}), (beside, set[int]())):
        counted = [row for at, row in enumerate(rows) if at not in left]
        columns = list(zip(*counted, strict=True))
        pools: dict[Pooling, Callable[[Sequence[float]], float]] = {
            "max": max,
            "mean": fmean,
            "last": lambda column: column[-1],
        }
        assert found.pooled is not None
        assert floats(found.pooled.values) == pytest.approx([pools[how](column) for column in columns], abs=1e-5)
        assert list(array("i", found.pooled.active)) == [sum(one > 0 for one in column) for column in columns]
        assert (found.rows, [at for at, out in enumerate(found.excluded) if out]) == ((), sorted(left))


async def test_a_prompt_of_which_nothing_is_counted(given: Given) -> None:
    await given.attach(5)
    (found,) = await told(given.engine, (256,), Watch(sae=active(5), pooling="max", exclude=("sink", "special")))
    assert found.pooled is not None
    assert (floats(found.pooled.values), found.excluded) == ([0.0] * D_SAE, (True,))


async def test_activations_themselves(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    raw, mean = await told(given.engine, ids, Watch.raw_at(POINT), Watch.at(POINT))
    values = floats(raw.raw)
    rows = [values[at : at + 32] for at in range(0, len(values), 32)]
    assert len(rows) == len(ids)
    assert [fmean(column) for column in zip(*rows, strict=True)] == pytest.approx(mean.mean, abs=1e-4)
    assert [sum(x * x for x in row) ** 0.5 for row in rows] == pytest.approx(mean.norms, rel=1e-4)
    assert (raw.sinks, raw.rows) == (mean.sinks, ())


async def test_a_lens_after_the_last_block_is_the_model(given: Given) -> None:
    ids = await given.ids()
    watched = tuple(Watch.lens_at(layer, 3) for layer in (0, 2))
    asked = request(ids, tokens=1, watched=watched, logprobs=3, prompt_logprobs=3)
    (token,), _ = await read(given.engine.generate(asked))
    first, last = token.activations
    assert (len(first.lens), {len(row) for row in first.lens}) == (len(ids), {3})
    scores = [*(each.top for each in token.prompt[1:]), token.top]
    for row, top in zip(last.lens, scores, strict=True):
        assert [each.token_id for each in row] == [each.id for each in top]
        assert [each.token for each in row] == [each.text for each in top]
        assert [each.logprob for each in row] == pytest.approx([each.logprob for each in top], abs=1e-4)
    assert _ids(first.lens) != _ids(last.lens)


def _ids(rows: Sequence[Sequence[TokenScore]]) -> list[list[int]]:
    return [[each.token_id for each in row] for row in rows]


async def test_without_an_sae_a_place_is_read_all_the_same(given: Given) -> None:
    ids = await given.ids("ab")
    raw, lens = await told(given.engine, ids, Watch.raw_at(HookPoint("resid_pre", 0)), Watch.lens_at(1, 2))
    assert (len(floats(raw.raw)), len(lens.lens)) == (2 * 32, 2)


@pytest.mark.parametrize("window", [None, 512])
async def test_in_pieces_as_at_once(
    tiny_llama: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """A long prompt is run in several steps, of few rows each where a lens looks at them."""
    watched = (
        *(Watch(sae=active(5), pooling=how, exclude=("special",)) for how in ("max", "mean", "last")),
        Watch.raw_at(POINT), *(Watch.lens_at(layer, 2) for layer in range(3)),
    )  # fmt: skip
    found = []
    ids = (*range(40, 70), 256)
    for tokens in (512, 7):
        if tokens == 7:
            monkeypatch.setattr("sae_actor.engine.interventions.readouts.MOST_LOGITS", 260 * 3 * 4)
        engine = TorchEngine(EngineSettings(threads=1, prompt_tokens=tokens))
        await engine.load_model(load(str(tiny_llama)), no_progress)
        await engine.attach(attach(5), str(tiny_sae))
        (token,), end = await read(engine.generate(request(ids, tokens=1, watched=watched, window=window)))
        assert end.reason == "length"
        found.append(token.activations)
        await engine.close()
    for whole, pieces in zip(*found, strict=True):
        assert (whole.excluded, whole.sinks) == (pieces.excluded, pieces.sinks)
        assert floats(whole.raw) == pytest.approx(floats(pieces.raw), abs=1e-4)
        assert _ids(whole.lens) == _ids(pieces.lens)
        if whole.pooled is not None:
            assert pieces.pooled is not None
            assert floats(whole.pooled.values) == pytest.approx(floats(pieces.pooled.values), abs=1e-4)
            assert whole.pooled.active == pieces.pooled.active


async def test_a_prompt_that_runs_alone_is_in_a_batch_of_one(given: Given) -> None:
    ids = await given.ids()
    asked = msgspec.structs.replace(request(ids, tokens=6), alone=True)
    (_, end), *_ = await asyncio.gather(
        read(given.engine.generate(asked)), *(read(given.engine.generate(request(ids, tokens=8))) for _ in range(2))
    )
    assert end.batch in (None, (1, 1))  # the fake engine has no steps
