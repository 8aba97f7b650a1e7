"""What the port `Engine` promises of log probabilities of a prompt's tokens."""

from __future__ import annotations

import pytest

from sae_actor.domain.refs import Edit
from sae_actor.engine import TorchEngine
from sae_actor.errors import BadRequestError
from sae_actor.ports import Watch
from tests.engine.asking import active, apart, finished, read, request
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
