"""What the port `Engine` promises of how texts end, of special tokens in them, and of thoughts."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.chats import Reasoning
from sae_actor.errors import BadRequestError
from sae_actor.ports import Token
from tests.engine.asking import finished, load, no_progress, read, request
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

END = 256


async def test_the_model_tells_its_end_tokens(given: Given) -> None:
    engine, ids = given.engine, await given.ids()
    facts = await engine.load_model(load(given.model), no_progress)
    assert facts.end_ids == (END,)
    assert facts.vocabulary is not None
    await engine.tokenize([facts.vocabulary - 1])
    with pytest.raises(BadRequestError):
        await engine.tokenize([facts.vocabulary])
    with pytest.raises(BadRequestError) as caught:
        engine.generate(request(ids, stop_token_ids=(facts.vocabulary,)))
    assert caught.value.fields["param"] == "stop_token_ids"


async def test_a_text_says_when_its_first_step_comes(given: Given) -> None:
    """Two run at a time."""
    ids = await given.ids()
    texts = [given.engine.generate(request(ids, tokens=100)) for _ in range(3)]
    first = await anext(texts[0])
    assert isinstance(first, Token)
    assert [text.begun.done() for text in texts] == [True, True, False]
    assert not texts[2].begun.done()
    await texts[1].aclose()
    await asyncio.wait_for(texts[2].begun, 10)
    for text in texts:
        await text.aclose()


async def test_a_stop_token_ends_the_text_before_it(given: Given) -> None:
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=30, temperature=1.0))
    last = whole.token_ids[9]
    first = whole.token_ids.index(last)
    tokens, end = await read(
        given.engine.generate(request(ids, tokens=30, temperature=1.0, stop_token_ids=(END, last)))
    )
    assert (end.reason, end.token_ids) == ("stop", whole.token_ids[: first + 1])
    assert "".join(token.text for token in tokens) == end.text
    assert whole.text.startswith(end.text)
    shown = request(ids, tokens=30, temperature=1.0, stop_token_ids=(last,), include_stop_str_in_output=True)
    assert (await finished(given.engine, shown)).text == whole.text[: len(end.text) + 1]


async def test_no_end_before_so_many_tokens(given: Given) -> None:
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=30, temperature=1.0))
    last = whole.token_ids[2]
    held = request(ids, tokens=30, temperature=1.0, stop_token_ids=(last,), min_tokens=8)
    end = await finished(given.engine, held)
    assert last not in end.token_ids[:8]
    assert len(end.token_ids) > 8
    assert end.reason == ("stop" if end.token_ids[-1] == last else "length")
    stop = whole.text[4:6]
    late = await finished(given.engine, request(ids, tokens=30, temperature=1.0, stop=(stop,), min_tokens=30))
    assert (late.token_ids, late.text) == (whole.token_ids, whole.text)


async def test_the_stop_string_where_it_is_wanted(given: Given) -> None:
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=30, temperature=1.0))
    stop = whole.text[10:13]
    asked = request(ids, tokens=30, temperature=1.0, stop=("zzzz", stop), include_stop_str_in_output=True)
    tokens, end = await read(given.engine.generate(asked))
    assert end.text == whole.text[: whole.text.index(stop) + 3] == "".join(token.text for token in tokens)


async def test_thoughts_are_told_apart_where_that_is_asked_for(given: Given) -> None:
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=30, temperature=1.0))
    start, text = whole.text.strip()[:1], whole.text
    apart = Reasoning(format="block", begin=start, end=text[9:11])
    tokens, end = await read(given.engine.generate(request(ids, tokens=30, temperature=1.0, reasoning=apart)))
    assert end.text == whole.text == "".join(token.text for token in tokens)
    thought, said = ("".join(getattr(token, name) for token in tokens) for name in ("reasoning", "content"))
    assert thought
    assert said
    assert thought in text
    assert text.endswith(said)
    assert 0 < end.reasoning_tokens < 30
    plain, _ = await read(given.engine.generate(request(ids, tokens=5)))
    assert {(token.reasoning, token.content) for token in plain} == {("", "")}


async def test_what_is_held_back_comes_when_the_text_is_ended_from_outside(given: Given) -> None:
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=30, temperature=1.0))
    never = whole.text[2:] + "never"
    stream = given.engine.generate(request(ids, tokens=100, temperature=1.0, stop=(never[:256],)))
    for _ in range(12):
        await anext(stream)
    stream.stop()
    _, end = await read(stream)
    assert end.reason == "cancelled"
    assert end.rest.text
    assert end.text.endswith(end.rest.text)
    assert end.text[:8] == whole.text[:8]
    assert whole.rest.text == ""
