"""What the port `Engine` promises of log probabilities of given tokens: a prompt's, and those of a text to score."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sae_actor.domain.refs import Edit, Positions
from sae_actor.engine import TorchEngine
from sae_actor.errors import BadRequestError
from sae_actor.ports import Watch
from tests.engine.asking import active, apart, finished, read, request, scored, scoring
from tests.engine.conftest import Given
from tests.engine.tiny import CONTEXT
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_each_token_of_the_prompt_is_scored(given: Given) -> None:
    ids = await given.ids()
    tokens, end = await read(given.engine.generate(request(ids, logprobs=3, prompt_logprobs=3)))
    assert tokens[0].prompt == end.prompt
    assert {token.prompt for token in tokens[1:]} == {()}
    assert tuple(each.id for each in end.prompt) == ids
    assert "".join(each.text for each in end.prompt) == "hello world"
    assert (end.prompt[0].logprob, end.prompt[0].top) == (None, ())
    for each in end.prompt[1:]:
        assert each.logprob is not None
        assert each.logprob <= 0
        assert len(each.top) == 3
        values = [top.logprob for top in each.top]
        assert values == sorted(values, reverse=True)
        for top in each.top:
            assert top.id != each.id or top.logprob == each.logprob, "the same number, if it is the same token"
    for token in tokens:
        assert token.scored is not None, "the new tokens are scored as ever"


async def test_scoring_changes_nothing(given: Given) -> None:
    ids = await given.ids()
    plain_tokens, plain = await read(given.engine.generate(request(ids)))
    tokens, end = await read(given.engine.generate(request(ids, prompt_logprobs=0)))
    assert [token.id for token in tokens] == [token.id for token in plain_tokens]
    assert (end.text, end.receipt, plain.prompt) == (plain.text, plain.receipt, ())
    assert {each.top for each in end.prompt} == {()}


async def test_nothing_is_made_of_a_prompt(given: Given) -> None:
    """With `max_tokens` 0 the prompt is run to its end, and read and edited at every position."""
    await given.attach(5)
    ids = await given.ids()
    steered = active(5, Edit(feature=3, strength=4.0, exclude=()))
    watch = Watch(sae=active(5), top_k=4)
    asked = request(ids, steered, tokens=0, watched=(watch,), prompt_logprobs=1)
    tokens, end = await read(given.engine.generate(asked))
    assert (tokens, end.reason, end.token_ids, end.text) == ([], "length", (), "")
    assert [each.id for each in end.prompt] == list(ids)
    receipt = end.receipt
    assert (receipt.tokens_prompt, receipt.tokens_generated, receipt.tokens_edited) == (len(ids), 0, len(ids))
    assert end.edited == ((0, len(ids)),)
    (told,) = end.activations
    assert (told.first, len(told.rows)) == (0, len(ids))
    (first, *_), _ = await read(given.engine.generate(request(ids, steered, watched=(watch,))))
    assert first.activations == end.activations
    assert (await finished(given.engine, request(ids, tokens=0))).prompt == ()


async def test_a_prompt_as_long_as_the_context(given: Given) -> None:
    context = CONTEXT if isinstance(given.engine, TorchEngine) else FakeEngine.context_length
    ids = tuple(n % 200 for n in range(context))
    end = await finished(given.engine, request(ids, tokens=0, prompt_logprobs=0))
    assert (end.reason, [each.id for each in end.prompt]) == ("length", list(ids))


async def test_several_at_once_are_as_alone(given: Given) -> None:
    prompts = [await given.ids(text) for text in ("hello world", "another text that is longer", "x")]
    alone = [await finished(given.engine, request(ids, tokens=2, prompt_logprobs=2)) for ids in prompts]
    streams = [given.engine.generate(request(ids, tokens=2, prompt_logprobs=2)) for ids in prompts]
    for stream, one in zip(streams, alone, strict=True):
        _, end = await read(stream)
        assert apart(end).token_ids == one.token_ids
        for here, there in zip(end.prompt, one.prompt, strict=True):
            assert (here.id, here.text) == (there.id, there.text)
            assert here.logprob == pytest.approx(there.logprob, abs=1e-5) or here.logprob is there.logprob is None


async def test_a_prompt_that_is_not_run_has_no_scores(given: Given) -> None:
    gone = await finished(given.engine, request(await given.ids(), active(9, Edit(3, 1.0)), prompt_logprobs=1))
    assert (gone.reason, gone.prompt) == ("intervention_removed", ())


@pytest.mark.parametrize("most", [-1, 10**9])
async def test_more_than_there_are(given: Given, most: int) -> None:
    if isinstance(given.engine, TorchEngine):
        with pytest.raises(BadRequestError):
            given.engine.generate(request((1, 2), prompt_logprobs=most))


async def test_a_continuation_is_scored_like_the_prompt(given: Given) -> None:
    ids = await given.ids()
    (end,) = await scored(given.engine, scoring(ids[:6], more=ids[6:], top=2))
    (whole,) = await scored(given.engine, scoring(ids, top=2))
    assert [each.id for each in end.prompt] == list(ids)
    assert [each.logprob for each in end.prompt[1:]] == pytest.approx(
        [each.logprob for each in whole.prompt[1:]], abs=1e-5
    )
    assert (end.token_ids, whole.token_ids, end.text, end.reason) == (ids[6:], (), "", "length")
    receipt = end.receipt
    assert (receipt.tokens_prompt, receipt.tokens_generated) == (6, len(ids) - 6)
    assert end.scores is not None
    assert whole.scores is not None
    assert (end.scores.top, len(whole.scores.top)) == ((), 2), "the last token of a continuation is not run"
    (end,) = await scored(given.engine, scoring(ids[:6], more=ids[6:], top=2, last=True))
    assert end.scores is not None
    assert [each.id for each in end.scores.top] == [each.id for each in whole.scores.top]
    assert (end.scores.kl, end.scores.targets) == (None, ())


@pytest.mark.parametrize(
    ("positions", "last", "edited"),
    [
        ("all", False, ((0, 10),)),
        ("all", True, ((0, 11),)),
        ("prompt", True, ((0, 6),)),
        ("generated", False, ((6, 10),)),
        ("generated", True, ((6, 11),)),
        ("response", False, ((5, 10),)),
        ("last_prompt", False, ((5, 6),)),
    ],
)
async def test_a_continuation_counts_as_generated(
    given: Given, positions: Positions, last: bool, edited: tuple[tuple[int, int], ...]
) -> None:
    await given.attach(5)
    ids = await given.ids()
    steered = active(5, Edit(feature=3, strength=4.0, positions=positions, exclude=()))
    (end,) = await scored(given.engine, scoring(ids[:6], steered, more=ids[6:], last=last))
    assert end.edited == edited


async def test_variants_are_compared_with_the_baseline(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    edit = Edit(feature=3, strength=4.0)
    asked = [
        scoring(ids[:6], active(5, *edits), more=ids[6:], deterministic=alone)
        for edits, alone in (((edit,), False), ((), False), ((edit,), True), ((), True), ((edit, edit), False))
    ]
    bare = scoring(ids[:6], more=ids[6:])
    ends = await scored(given.engine, *asked, bare, baseline=5)
    assert [end.reason for end in ends] == ["length"] * 6, ends
    kls = [end.scores.kl for end in ends if end.scores is not None]
    assert kls[1] == kls[5] == 0
    assert kls[0] is not None
    assert kls[0] > 0.001
    assert kls[2] == pytest.approx(kls[0], abs=1e-5)
    assert kls[3] == pytest.approx(0, abs=1e-5)
    assert ends[0].prompt != ends[1].prompt == ends[5].prompt
    for one, end in zip((*asked, bare), ends, strict=True):
        (alone,) = await scored(given.engine, one)
        assert [each.logprob for each in alone.prompt[1:]] == pytest.approx(
            [each.logprob for each in end.prompt[1:]], abs=1e-5
        )
        assert alone.scores is not None
        assert alone.scores.kl is None
        assert (end.receipt.tokens_edited, end.edited) == (alone.receipt.tokens_edited, alone.edited)


async def test_targets_follow_the_text(given: Given) -> None:
    ids = await given.ids()
    (end,) = await scored(given.engine, scoring(ids, targets=(97, 98, 99), top=200))
    assert end.scores is not None
    assert [each.id for each in end.scores.targets] == [97, 98, 99]
    ranks = {each.id: (rank, each.logprob) for rank, each in enumerate(end.scores.top, 1)}
    for target in end.scores.targets:
        if target.id in ranks:
            assert (target.rank, target.logprob) == ranks[target.id]
        assert target.text == (await given.engine.detokenize([target.id])) or target.text == "\ufffd"
    logits = [target.logit - end.scores.targets[0].logit for target in end.scores.targets]
    if isinstance(given.engine, TorchEngine):
        logprobs = [target.logprob - end.scores.targets[0].logprob for target in end.scores.targets]
        assert logits == pytest.approx(logprobs, abs=1e-5)


async def test_more_texts_to_score_than_may_wait(given: Given) -> None:
    await given.attach(5)
    steered = active(5, Edit(feature=3, strength=4.0))
    streams = [
        stream
        for text in ("hello", "other texts", "x!", "more", "one more", "last")
        for ids in [await given.ids(text)]
        for stream in given.engine.score([scoring(ids), scoring(ids, steered)], baseline=0)
    ]
    other = given.engine.generate(request(await given.ids(), tokens=3))
    ends = [(await read(stream))[1] for stream in streams]
    assert {end.reason for end in ends} == {"length"}
    assert (await read(other))[1].reason == "length"


async def test_a_text_whose_sae_is_gone_is_not_scored(given: Given) -> None:
    ids = await given.ids()
    gone, bare = await scored(given.engine, scoring(ids, active(9, Edit(3, 1.0))), scoring(ids), baseline=1)
    assert (gone.reason, gone.prompt, gone.scores) == ("intervention_removed", (), None)
    assert (bare.reason, bare.scores is None) == ("length", False)


async def test_a_text_to_score_that_nobody_waits_for(given: Given) -> None:
    ids = await given.ids()
    streams = given.engine.score([scoring(ids, deterministic=alone) for alone in (False, True)], baseline=0)
    for stream in streams:
        stream.stop()
    assert {(await read(stream))[1].reason for stream in streams} <= {"cancelled", "length"}
    assert (await finished(given.engine, request(ids))).reason == "length"


@pytest.mark.parametrize("fields", [{"more": (10**6,)}, {"targets": (10**6,)}, {"more": (1,) * 300}])
async def test_texts_that_cannot_be_scored(given: Given, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        given.engine.score([scoring((1, 2), **fields)])
    assert (await finished(given.engine, request((1, 2)))).reason == "length"


async def test_named_tokens_are_scored_wherever_one_is_made(given: Given) -> None:
    named = (97, 33, 256)
    asked = request(await given.ids(), logprobs=260)
    tokens, _ = await read(given.engine.generate(replace(asked, logprobs_of=named)))
    for token in tokens:
        assert [each.id for each in token.named] == list(named)
        known = {each.id: each.logprob for each in token.top}
        for each in token.named:
            if each.id in known:
                assert each.logprob == known[each.id]
    bare, _ = await read(given.engine.generate(replace(asked, logprobs=None, logprobs_of=named)))
    assert [token.named for token in bare] == [token.named for token in tokens]
    assert {token.named for token in (await read(given.engine.generate(asked)))[0]} == {()}
