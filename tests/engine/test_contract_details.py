"""What the port `Engine` reports of each position: the edits that held, how far x moved, features before and after."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from sae_actor.domain.refs import ActiveSae, Edit, HookPoint, Span, StopWhen, When
from sae_actor.ports import FeatureChange, Finished, GenerationRequest, PositionDetails, Token, Watch
from tests.engine.asking import active, apart, attach, detach, finished, read, request, scored, scoring
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

STRONG = Edit(feature=3, strength=40.0, exclude=())
NOTHING: tuple[Watch, ...] = ()


def detailed(ids: tuple[int, ...], *saes: ActiveSae, watches: tuple[Watch, ...] = NOTHING, **more: int) -> (
    GenerationRequest
):  # fmt: skip
    return replace(request(ids, *saes, **more), details=watches)  # type: ignore[arg-type]  # numbers of tokens alone


def told(tokens: list[Token], end: Finished) -> list[PositionDetails]:
    return [each for token in tokens for each in token.details] + [*end.details]


def changes(each: PositionDetails) -> tuple[FeatureChange, ...]:
    assert not isinstance(each.features, UnsetType)
    return each.features


async def test_every_position_that_is_run_is_reported_once_with_its_token(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    sae, watch = active(5, STRONG), Watch(sae=active(5), features=(7, 3))
    bare = await finished(given.engine, request(ids, sae))
    tokens, end = await read(given.engine.generate(detailed(ids, sae, watches=(watch,))))
    assert end == bare, "reporting changes nothing"
    assert [[each.position for each in token.details] for token in tokens] == [[*range(11)]] + [
        [at] for at in range(11, 18)
    ]
    assert end.details == ()
    for each in told(tokens, end):
        assert each.edits == (("sae-5", 0),)
        assert each.relative_norm > 0
        assert [(one.sae_id, one.feature) for one in changes(each)] == [("sae-5", 7), ("sae-5", 3)]
        assert changes(each)[1].after - changes(each)[1].before >= 39.0
    norms = [each.relative_norm for each in told(tokens, end)]
    assert sum(norms) / len(norms) == pytest.approx(end.receipt.mean_relative_norm, rel=1e-5)


async def test_before_is_what_a_watch_reads(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    watch = Watch(sae=active(5), features=(7, 3, 11))
    asked = replace(detailed(ids, active(5, STRONG), watches=(watch,)), watched=(watch,))
    tokens, end = await read(given.engine.generate(asked))
    rows = [row for token in tokens for row in token.activations[0].rows]
    assert [[(one.feature, one.before) for one in changes(each)] for each in told(tokens, end)] == [
        [(one.feature, one.activation) for one in row] for row in rows
    ]


async def test_nothing_is_reported_unless_it_is_asked_for(given: Given) -> None:
    await given.attach(5)
    tokens, end = await read(given.engine.generate(request(await given.ids(), active(5, STRONG))))
    assert told(tokens, end) == []


async def test_without_an_intervention_nothing_was_done(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    bare = await finished(given.engine, request(ids))
    watch = Watch(sae=active(5), features=(3,))
    for watches in (NOTHING, (watch,)):
        tokens, end = await read(given.engine.generate(detailed(ids, watches=watches)))
        assert end == bare
        for at, each in enumerate(told(tokens, end)):
            assert (each.position, each.edits, each.relative_norm) == (at, (), 0.0)
            if watches:
                assert changes(each)[0].before == changes(each)[0].after
            else:
                assert each.features is UNSET


async def test_which_edits_held_where(given: Given) -> None:
    """Each by its index, of positions, exclusions and conditions."""
    await given.attach(5)
    ids = await given.ids()
    edits = (
        Edit(feature=3, strength=5.0),
        Edit(feature=7, strength=5.0, positions="generated", exclude=()),
        Edit(feature=9, strength=0.5, method="scale", positions=Span(tokens=(0, 4)), exclude=()),
        Edit(feature=11, strength=5.0, exclude=(), when=When(feature=11, above=1e6)),
    )
    tokens, end = await read(given.engine.generate(detailed(ids, active(5, *edits))))
    expected = [[2], *([0] for _ in range(3)), [0, 2], *([0] for _ in range(6)), *([0, 1] for _ in range(7))]
    found = told(tokens, end)
    assert [[index for _, index in each.edits] for each in found] == expected
    assert end.edited == ((0, 18),)


async def test_sinks_that_are_left_out_show_no_edit(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    watch = Watch(sae=active(5), features=(3,))
    (first, *_), end = await read(
        given.engine.generate(detailed(ids, active(5, Edit(feature=3, strength=40.0)), watches=(watch,)))
    )
    sink, *others = first.details
    assert (sink.edits, sink.relative_norm) == ((), 0.0)
    assert changes(sink)[0].after == changes(sink)[0].before
    assert {each.edits for each in others} == {(("sae-5", 0),)}
    assert all(changes(each)[0].after > changes(each)[0].before for each in others)
    assert end.excluded == ((0, 1),)


async def test_a_reconstruction_writes_though_no_edit_holds(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    bare = active(5, mode="reconstruct")
    (first, *_), _ = await read(given.engine.generate(detailed(ids, bare)))
    assert [each.edits for each in first.details] == [()] * 11
    assert [each.relative_norm > 0 for each in first.details] == [False] + [True] * 10
    passing = active(5, STRONG, Edit(feature=4, strength=1.0), mode="reconstruct")
    (first, *_), _ = await read(given.engine.generate(detailed(ids, passing)))
    assert [[index for _, index in each.edits] for each in first.details] == [[]] + [[0, 1]] * 10


async def test_several_saes_in_the_order_of_the_request(given: Given) -> None:
    await given.attach(5)
    upper = HookPoint("resid_post", 2)
    await given.engine.attach(attach(6, point=upper), given.sae)
    ids = await given.ids()
    saes = active(6, Edit(feature=2, strength=9.0, exclude=()), point=upper), active(5, STRONG)
    watches = Watch(sae=active(6, point=upper), features=(2,)), Watch(sae=active(5), features=(3, 2))
    (first, *_), _ = await read(given.engine.generate(detailed(ids, *saes, watches=watches)))
    for each in first.details:
        assert each.edits == (("sae-6", 0), ("sae-5", 0))
        assert [(one.sae_id, one.feature) for one in changes(each)] == [("sae-6", 2), ("sae-5", 3), ("sae-5", 2)]
        assert each.relative_norm > 0


async def test_alone_as_in_a_batch(given: Given) -> None:
    """Each of two texts under other edits of one SAE is reported its own."""
    await given.attach(5)
    ids = await given.ids()
    watches = (Watch(sae=active(5), features=(3, 7)),)
    asked = [
        detailed(ids, active(5, STRONG, Edit(feature=7, strength=2.0)), watches=watches),
        detailed((*ids, *ids[:3]), active(5, Edit(feature=7, strength=-30.0, positions="generated"), STRONG)),
    ]
    alone = [await read(given.engine.generate(each)) for each in asked]
    both = await asyncio.gather(*(read(stream) for stream in [given.engine.generate(each) for each in asked]))
    for (before, end), (tokens, same) in zip(alone, both, strict=True):
        assert apart(same).token_ids == end.token_ids
        for one, other in zip(told(before, end), told(tokens, same), strict=True):
            assert (one.position, one.edits) == (other.position, other.edits)
            assert one.relative_norm == pytest.approx(other.relative_norm, rel=1e-4)
            if one.features is not UNSET:
                for a, b in zip(changes(one), changes(other), strict=True):
                    assert (a.before, a.after) == pytest.approx((b.before, b.after), rel=1e-4, abs=1e-4)


async def test_with_what_ends_the_text(given: Given) -> None:
    await given.attach(5)
    stop = StopWhen(sae=active(5), feature=3, above=-1e6)
    tokens, end = await read(given.engine.generate(replace(detailed(await given.ids()), stop_when=stop)))
    assert (end.reason, [each.position for each in told(tokens, end)]) == ("feature", [*range(12)])


async def test_a_text_without_a_token_is_reported_at_its_end(given: Given) -> None:
    await given.attach(5)
    asked = replace(detailed(await given.ids(), active(5, STRONG), tokens=0), prompt_logprobs=0)
    tokens, end = await read(given.engine.generate(asked))
    assert (tokens, [each.position for each in end.details]) == ([], [*range(11)])


async def test_texts_that_are_scored(given: Given) -> None:
    """Also where one pass over the prompt is shared, and where equal ones differ in what they report."""
    await given.attach(5)
    ids = await given.ids()
    generated = Edit(feature=3, strength=40.0, positions="generated")
    bare = scoring(ids, more=ids[:4])
    edited = replace(bare, intervention=(active(5, generated),))
    watch = Watch(sae=active(5), features=(3,))
    several = [bare, replace(edited, details=(watch,)), edited, replace(bare, details=NOTHING)]
    first, second, third, fourth = await scored(given.engine, *several, baseline=0)
    assert first.details == third.details == ()
    assert (second.scores, second.prompt) == (third.scores, third.prompt)
    assert [each.position for each in second.details] == [each.position for each in fourth.details] == [*range(14)]
    assert [len(each.edits) for each in second.details] == [0] * 11 + [1] * 3
    assert [len(each.edits) for each in fourth.details] == [0] * 14
    assert [changes(each)[0].after > changes(each)[0].before for each in second.details] == [False] * 11 + [True] * 3


async def test_an_sae_that_is_read_and_goes(given: Given) -> None:
    await given.attach(5)
    stream = given.engine.generate(
        detailed(await given.ids(), watches=(Watch(sae=active(5), features=(3,)),), tokens=110)
    )
    await anext(stream)
    assert await given.engine.detach(detach(5), 0.0) > 0
    assert (await read(stream))[1].reason == "intervention_removed"


async def test_a_transcoder_writes_elsewhere_than_it_reads(given: Given) -> None:
    """So its own edits do not change what it reads; another SAE's at that hook point do."""
    reads, writes = HookPoint("mlp_in", 1), HookPoint("mlp_out", 1)
    await given.engine.attach(attach(5, point=reads, out=writes), given.sae)
    ids = await given.ids()
    sae = active(5, STRONG, point=reads, out=writes)
    (first, *_), _ = await read(
        given.engine.generate(detailed(ids, sae, watches=(Watch(sae=replace(sae, steering=()), features=(7,)),)))
    )
    for each in first.details:
        assert each.edits == (("sae-5", 0),)
        assert each.relative_norm > 0
        assert changes(each)[0].before == changes(each)[0].after
