"""An evaluation on the device gives the numbers of a plain float64 computation, however its texts share a pass."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sae_actor.domain.measuring.summaries import evaluation
from sae_actor.domain.refs import Edit, Exclusion
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import BadRequestError, ModelNotLoadedError, SAENotAttachedError, SAEUnsupportedError
from sae_actor.ports import EvaluatedGroup, ProfiledFeatures, TextGroup
from tests.engine.asking import attach, detach, load, no_progress
from tests.engine.measuring.plain import evaluated
from tests.engine.tiny import save_tiny_model

pytestmark = pytest.mark.anyio

RANDOM = Random(0)
TEXTS = tuple(tuple(RANDOM.randrange(256) for _ in range(RANDOM.randint(1, 40))) for _ in range(80))


async def ready(model: Path, sae: Path, **settings: int) -> TorchEngine:
    engine = TorchEngine(EngineSettings(**settings))
    await engine.load_model(load(str(model)), no_progress)
    await engine.attach(attach(7), str(sae))
    return engine


def summed(groups: list[EvaluatedGroup]) -> dict[str, object]:
    sums: Counter[str] = Counter()
    for each in groups:
        sums.update(each.sums)
    columns = (zip(*(getattr(each, name) for each in groups), strict=True) for name in ("mean_sums", "firing"))
    mean, firing = ([sum(column) for column in each] for each in columns)
    return evaluation(sums, mean, [int(each) for each in firing])


@pytest.mark.parametrize(("family", "block"), [("llama", "model.layers.1"), ("gpt2", "transformer.h.1")])
@pytest.mark.parametrize("exclude", [("sink",), ()])
async def test_as_computed_plainly(
    tmp_path: Path, tiny_sae: Path, family: str, block: str, exclude: tuple[Exclusion, ...]
) -> None:
    model = save_tiny_model(tmp_path / family, family)
    engine = await ready(model, tiny_sae)
    groups = [TextGroup(attach_position=7, texts=TEXTS[at : at + 64], exclude=exclude) for at in (0, 64)]
    found = summed([await engine.evaluate(each) for each in groups])
    await engine.close()
    expected = evaluated(model, tiny_sae, TEXTS, lambda network: network.get_submodule(block), sinks=bool(exclude))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-6)
    assert found["tokens"] == sum(map(len, TEXTS))


async def test_the_same_group_gives_the_same_numbers(tiny_llama: Path, tiny_sae: Path) -> None:
    engine = await ready(tiny_llama, tiny_sae, prompt_tokens=64)
    group = TextGroup(attach_position=7, texts=TEXTS[:64])
    one, other = await engine.evaluate(group), await engine.evaluate(group)
    await engine.close()
    assert one == other


async def test_what_is_read(tiny_llama: Path, tiny_sae: Path) -> None:
    engine = await ready(tiny_llama, tiny_sae)
    evaluated_, read = (
        await engine.evaluate(TextGroup(attach_position=7, texts=TEXTS[:64])),
        await engine.read_group(TextGroup(attach_position=7, texts=TEXTS[:64])),
    )
    await engine.close()
    features, values = np.frombuffer(read.features, "<u4"), np.frombuffer(read.values, "<f4")
    positions, out = np.frombuffer(read.positions, "<u4"), np.frombuffer(read.excluded, "u1")
    counts = np.bincount(features[values > 0], minlength=24)
    assert tuple(counts.tolist()) == evaluated_.firing
    assert len(out) == evaluated_.sums["tokens"] == len(np.frombuffer(read.norms, "<f4"))
    assert out.sum() == evaluated_.sums["excluded"]
    assert not out[positions].any()
    assert (np.diff(features.astype(int)) >= 0).all()


async def test_refused(tiny_llama: Path, tiny_sae: Path) -> None:
    engine = await ready(tiny_llama, tiny_sae)
    with pytest.raises(SAENotAttachedError):
        await engine.evaluate(TextGroup(attach_position=8, texts=((1, 2),)))
    with pytest.raises(BadRequestError):
        await engine.evaluate(TextGroup(attach_position=7, texts=((1, 999_999),)))
    with pytest.raises(BadRequestError):
        await engine.evaluate(TextGroup(attach_position=7, texts=((1,) * 129,)))
    await engine.close()


async def test_a_detach_ends_it(tiny_llama: Path, tiny_sae: Path) -> None:
    engine = await ready(tiny_llama, tiny_sae, prompt_tokens=32)
    running = asyncio.ensure_future(engine.evaluate(TextGroup(attach_position=7, texts=TEXTS * 20)))
    await asyncio.sleep(0.05)
    await engine.detach(detach(7), 0.0)
    with pytest.raises(SAENotAttachedError):
        await running
    await engine.close()
    with pytest.raises((ModelNotLoadedError, SAENotAttachedError)):
        await engine.evaluate(TextGroup(attach_position=7, texts=((1, 2),)))


async def test_units_by_a_profile(tiny_llama: Path, tiny_sae: Path) -> None:
    engine = await ready(tiny_llama, tiny_sae)
    edits = (Edit(feature=3, strength=0.5, unit="max"), Edit(feature=4, strength=0.1, unit="norm"))
    with pytest.raises(SAEUnsupportedError):
        await engine.raw(7, edits)
    profiled = ProfiledFeatures(maxima={3: 8.0}, median_norm=20.0)
    by_max, by_norm = await engine.raw(7, edits, profiled)
    norm = (await engine.feature(7, 4)).decoder_norm
    await engine.close()
    assert by_max.strength == pytest.approx(4.0)
    assert by_norm.strength * norm == pytest.approx(0.1 * 20.0, rel=1e-5)
