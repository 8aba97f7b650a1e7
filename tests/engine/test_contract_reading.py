"""What the port `Engine` tells of an SAE and of what it reads."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import msgspec
import pytest

from sae_actor.domain.refs import Edit, Exclusion, HookPoint, StopWhen, Unit
from sae_actor.engine import TorchEngine
from sae_actor.errors import BadRequestError, FeatureOutOfRangeError, SAENotAttachedError, SAEUnsupportedError
from sae_actor.ports import Activations, Watch
from tests.engine.asking import active, attach, detach, finished, read, request
from tests.engine.conftest import Given
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.anyio


# — units, features —


@pytest.mark.parametrize(
    ("edit", "strength"),
    [
        (Edit(feature=3, strength=4.0), 4.0),
        (Edit(feature=3, strength=4.0, unit="unit"), 4.0),
        (Edit(feature=3, strength=0.5, unit="max"), 10.0),
        (Edit(feature=3, strength=0.5, unit="norm", positions="prompt"), 3.5),
    ],
)
async def test_units_come_to_raw_strengths(given: Given, tmp_path: Path, edit: Edit, strength: float) -> None:
    """Decoder rows of the small SAE are of length 1."""
    folder = shutil.copytree(given.sae, tmp_path / "measured") if isinstance(given.engine, TorchEngine) else tmp_path
    (folder / "features.json").write_text('{"median_norm": 7.0, "3": {"max": 20.0, "density": 0.1}, "4": {}}')
    if isinstance(given.engine, FakeEngine):
        given.engine.maxima, given.engine.median_norm = {3: 20.0}, 7.0
    await given.engine.attach(attach(5), str(folder))
    (found,) = await given.engine.raw(5, (edit,))
    assert found.strength == pytest.approx(strength, rel=1e-6)
    assert msgspec.structs.replace(found, strength=0, unit="raw") == msgspec.structs.replace(
        edit, strength=0, unit="raw"
    )
    with pytest.raises(SAEUnsupportedError):
        await given.engine.raw(5, (edit, Edit(feature=4, strength=1.0, unit="max")))
    with pytest.raises(BadRequestError):
        await given.engine.raw(5, (Edit(feature=3, strength=0.0, method="scale", unit="unit"),))


@pytest.mark.parametrize(
    ("edit", "strength"),
    [
        (Edit(feature=3, strength=4.0), 4.0),
        (Edit(feature=3, strength=4.0, unit="unit"), 4.0),
        (Edit(feature=3, strength=0.5, unit="max"), 10.0),
        (Edit(feature=3, strength=0.5, unit="norm", positions="prompt"), 3.5),
    ],
)
async def test_units_of_an_sae_that_is_not_attached(given: Given, tmp_path: Path, edit: Edit, strength: float) -> None:
    folder = shutil.copytree(given.sae, tmp_path / "measured") if isinstance(given.engine, TorchEngine) else tmp_path
    (folder / "features.json").write_text('{"median_norm": 7.0, "3": {"max": 20.0, "density": 0.1}, "4": {}}')
    if isinstance(given.engine, FakeEngine):
        given.engine.maxima, given.engine.median_norm = {3: 20.0}, 7.0
    where = attach(5).location
    (found,) = await given.engine.raw_on_disk(where, str(folder), (edit,))
    assert found.unit == "raw"
    assert found.strength == pytest.approx(strength, rel=1e-6)
    await given.engine.attach(attach(5), str(folder))
    assert await given.engine.raw(5, (edit,)) == (found,)
    with pytest.raises(SAEUnsupportedError):
        await given.engine.raw_on_disk(where, str(folder), (Edit(feature=4, strength=1.0, unit="max"),))
    with pytest.raises(BadRequestError):
        await given.engine.raw_on_disk(
            where, str(folder), (Edit(feature=3, strength=0.0, method="scale", unit="unit"),)
        )


async def test_units_without_statistics(given: Given) -> None:
    await given.attach(5)
    units: tuple[Unit, ...] = ("max", "norm")
    for unit in units:
        with pytest.raises(SAEUnsupportedError):
            await given.engine.raw(5, (Edit(feature=3, strength=1.0, unit=unit),))
    with pytest.raises(SAENotAttachedError):
        await given.engine.raw(6, (Edit(feature=3, strength=1.0, unit="unit"),))


async def test_a_feature_is_looked_at(given: Given) -> None:
    with pytest.raises(SAENotAttachedError):
        await given.engine.feature(5, 3)
    await given.attach(5)
    found = await given.engine.feature(5, 3)
    assert (found.feature, found.threshold) == (3, None)
    assert found.decoder_norm == pytest.approx(1.0, abs=1e-5)
    assert len(found.nearest) == len(found.promoted) == len(found.suppressed) == 10
    assert 3 not in {each.feature for each in found.nearest}
    assert [each.cosine for each in found.nearest] == sorted((each.cosine for each in found.nearest), reverse=True)
    with pytest.raises(FeatureOutOfRangeError):
        await given.engine.feature(5, 24)


# — activations on the way —


async def test_each_position_that_is_run_is_read_once(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    watch = Watch(sae=active(5), top_k=4)
    bare = await finished(given.engine, request(ids))
    tokens, end = await read(given.engine.generate(request(ids, watched=(watch,))))
    assert end == bare, "reading changes nothing"
    told = [token.activations for token in tokens]
    assert [[each.first for each in one] for one in told] == [[0]] + [[at] for at in range(11, 18)]
    assert [len(one[0].rows) for one in told] == [11] + [1] * 7
    assert {one[0].sae_id for one in told} == {"sae-5"}
    for row in (row for one in told for row in one[0].rows):
        values = [each.activation for each in row]
        assert 0 < len(row) <= 4
        assert all(values)
        assert values == sorted(values, reverse=True)
        assert len({each.feature for each in row} & set(range(24))) == len(row)


async def test_named_features_are_all_told(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    (whole, *_), _ = await read(given.engine.generate(request(ids, watched=(Watch(sae=active(5), top_k=24),))))
    asked = (7, 3, 11, 7)
    (some, *_), _ = await read(given.engine.generate(request(ids, watched=(Watch(sae=active(5), features=asked),))))
    (best, *_), _ = await read(
        given.engine.generate(request(ids, watched=(Watch(sae=active(5), features=asked, top_k=1),)))
    )
    for all_, named, one in zip(*(token.activations[0].rows for token in (whole, some, best)), strict=True):
        on = {each.feature: each.activation for each in all_}
        assert [each.feature for each in named] == list(asked)
        assert [each.activation for each in named] == pytest.approx([on.get(each, 0.0) for each in asked], abs=1e-5)
        top = max(on.get(each, 0.0) for each in asked)
        assert [each.activation for each in one] == pytest.approx([top] if top else [], abs=1e-5)


async def test_sinks_are_told_and_left_out(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    (whole, *_), end = await read(given.engine.generate(request(ids, watched=(Watch(sae=active(5), top_k=4),))))
    (told,) = whole.activations
    assert (told.sinks, told.excluded) == ((True, *[False] * 10), (False,) * 11)
    without = Watch(sae=active(5), top_k=4, exclude=("sink",))
    (found, second, *_), same = await read(given.engine.generate(request(ids, watched=(without,))))
    (left,) = found.activations
    assert same == end
    assert (left.sinks, left.excluded) == (told.sinks, told.sinks)
    assert left.rows[0] == ()
    assert left.rows[1:] == told.rows[1:]
    assert (second.activations[0].sinks, second.activations[0].excluded) == ((False,), (False,))
    named = Watch(sae=active(5), features=(7, 3), exclude=("sink",))
    (some, *_), _ = await read(given.engine.generate(request(ids, watched=(named,))))
    assert [len(row) for row in some.activations[0].rows] == [2] * 11, "what is named is told of every position"
    best = Watch(sae=active(5), features=tuple(range(24)), top_k=1, exclude=("sink", "special"))
    marked = (*ids[:4], 256, *ids[4:])
    (some, *_), _ = await read(given.engine.generate(request(marked, watched=(best,))))
    assert [at for at, left in enumerate(some.activations[0].excluded) if left] == [0, 4]
    assert {len(some.activations[0].rows[at]) for at in (0, 4)} == {0}
    assert some.activations[0].rows[1] != ()


async def test_what_the_template_wrote_is_not_read(given: Given) -> None:
    await given.attach(5)
    chat = await given.engine.tokenize([{"role": "user", "content": "Hello"}])
    assert chat.turns is not None
    watch = Watch(sae=active(5), top_k=4, exclude=("template",))
    asked = request(chat.token_ids, watched=(watch,), turns=chat.turns)
    (first, second, *_), _ = await read(given.engine.generate(asked))
    said = set(range(*chat.turns[0].content))
    assert [at not in said for at in range(len(chat.token_ids))] == list(first.activations[0].excluded)
    assert second.activations[0].excluded == (False,), "what is made is no template's"


async def test_no_feature_ends_the_text_where_it_is_not_read(given: Given) -> None:
    """`stop_when` passes over special tokens that are told to be left out."""
    await given.attach(5)
    ids = await given.ids()
    always = StopWhen(sae=active(5), feature=3, above=-1e6)
    end = await finished(given.engine, request(ids, stop_when=always))
    assert (end.reason, len(end.token_ids)) == ("feature", 2)
    sinks = StopWhen(sae=active(5), feature=3, above=-1e6, exclude=("sink",))
    assert (await finished(given.engine, request(ids, stop_when=sinks))).token_ids == end.token_ids


async def test_a_feature_ends_the_text(given: Given) -> None:
    """At the first generated token where it is on; the token made with that is the last."""
    await given.attach(5)
    ids = await given.ids()
    asked = request(ids, tokens=60, temperature=1.0, watched=(Watch(sae=active(5), top_k=24),))
    tokens, whole = await read(given.engine.generate(asked))
    rows = [{each.feature: each.activation for each in row} for token in tokens for row in token.activations[0].rows]
    generated = rows[len(ids) :]
    feature = next(f for f in generated[5] if generated[5][f] > 0)
    above = 0.5 * generated[5][feature]
    at = next(n for n, row in enumerate(generated) if row.get(feature, 0.0) > above)
    stop = StopWhen(sae=active(5), feature=feature, above=above)
    tokens, end = await read(given.engine.generate(request(ids, tokens=60, temperature=1.0, stop_when=stop)))
    assert (end.reason, end.token_ids) == ("feature", whole.token_ids[: at + 2])
    assert "".join(token.text for token in tokens) == end.text
    assert {token.activations for token in tokens} == {()}
    never = StopWhen(sae=active(5), feature=feature, above=1e6)
    assert await finished(given.engine, request(ids, tokens=60, temperature=1.0, stop_when=never)) == whole


async def test_watching_an_sae_that_goes(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    stream = given.engine.generate(request(ids, tokens=110, watched=(Watch(sae=active(5), top_k=1),)))
    await anext(stream)
    assert await given.engine.detach(detach(5), 0.0) > 0
    assert (await read(stream))[1].reason == "intervention_removed"
    gone = await finished(given.engine, request(ids, watched=(Watch(sae=active(5), top_k=1),)))
    assert gone.reason == "intervention_removed"


# — the activation itself —


async def test_the_mean_of_what_arrives_needs_no_sae(given: Given) -> None:
    """Of the positions that are not left out; in prefill chunks too, and next to an SAE that is read."""
    ids = await given.ids()
    marked = (*ids[:4], 256, *ids[4:])
    point = HookPoint("resid_post", 1)
    bare = await finished(given.engine, request(marked, tokens=2))

    async def mean(ids: tuple[int, ...], *exclude: Exclusion) -> Activations:
        asked = request(ids, tokens=2, watched=(Watch.at(point, exclude),))
        (first, *_), end = await read(given.engine.generate(asked))
        assert end == bare or ids != marked, "reading changes nothing"
        (found,) = first.activations
        assert (found.sae_id, found.first, found.rows) == ("", 0, ())
        assert len(found.norms) == len(found.excluded) == len(ids)
        return found

    whole, counted = await mean(marked), await mean(marked, "sink", "special")
    assert not any(whole.excluded)
    assert [at for at, left in enumerate(counted.excluded) if left] == [0, 4]
    assert counted.norms == whole.norms
    # Positions see what is before them alone: rows come of prefixes, and their mean is that of all.
    n, sums = 0, [[0.0] * len(whole.mean)]
    for length in range(1, len(marked) + 1):
        prefix = await mean(marked[:length])
        sums.append([length * value for value in prefix.mean])
        n = length
    rows = [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(sums)]
    kept = [row for at, row in enumerate(rows) if at not in (0, 4)]
    assert counted.mean == pytest.approx([sum(column) / (n - 2) for column in zip(*kept, strict=True)], abs=1e-4)
    for row, norm in zip(rows, whole.norms, strict=True):
        assert math.hypot(*row) == pytest.approx(norm, abs=1e-3)


async def test_a_text_that_is_left_out_as_a_whole_has_no_mean(given: Given) -> None:
    asked = request((104,), tokens=1, watched=(Watch.at(HookPoint("resid_post", 1), ("sink",)),))
    (first, *_), _ = await read(given.engine.generate(asked))
    assert set(first.activations[0].mean) == {0.0}
