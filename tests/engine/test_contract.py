"""What the port `Engine` promises of models, prompts and texts.

Here and in `test_contract_*` it is run against the fake and against torch on a tiny random llama.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from msgspec.structs import replace

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import ModelFacts
from sae_actor.errors import (
    BadRequestError,
    MailboxFullError,
    ModelNotFoundError,
    ModelNotLoadedError,
    SAEUnsupportedError,
)
from sae_actor.ports import Token
from tests.engine.asking import apart, finished, load, no_progress, read, request
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio


# — the model —


async def test_a_model_is_loaded_once_per_request(empty: Given) -> None:
    seen: list[str] = []
    facts = await empty.engine.load_model(load(empty.model), lambda progress: seen.append(progress.kind))
    assert isinstance(facts, ModelFacts)
    assert facts.model_id == empty.model
    assert (facts.num_layers, facts.hidden_size, facts.dtype, facts.device) == (3, 32, "float32", "cpu")
    assert facts.widths["resid_post"] == 32
    assert facts.memory_bytes > 0
    assert facts.has_chat_template
    assert facts.adds_bos is False  # what `tokenize` gives begins with the text itself
    assert facts.environment
    assert set(seen) == {"load"}
    assert await empty.engine.load_model(load(empty.model), no_progress) is facts


async def test_without_a_model_nothing_is_done(empty: Given) -> None:
    with pytest.raises(ModelNotLoadedError):
        await empty.engine.tokenize("hello")
    with pytest.raises(ModelNotLoadedError):
        await finished(empty.engine, request((1, 2)))
    with pytest.raises(ModelNotLoadedError):
        await empty.attach(5)


async def test_a_model_that_is_nowhere(given: Given) -> None:
    with pytest.raises(ModelNotFoundError):
        await given.engine.load_model(load("none/such", at=2), no_progress)
    with pytest.raises(ModelNotLoadedError):  # the old one went first
        await given.engine.tokenize("hello")


async def test_another_model_replaces_the_first(given: Given) -> None:
    ids = await given.ids()
    stream = given.engine.generate(request(ids, tokens=100))
    await anext(stream)
    await given.engine.load_model(load(given.model, at=2), no_progress)
    _, end = await read(stream)
    assert (end.reason, end.error_code) == ("error", "model_not_loaded")
    assert (await finished(given.engine, request(ids))).reason == "length"


async def test_an_unloaded_model_is_freed(given: Given) -> None:
    ids = await given.ids()
    stream = given.engine.generate(request(ids, tokens=100))
    await anext(stream)
    given.engine.retain(Residents(model=None))
    _, end = await read(stream)
    assert (end.reason, end.error_code) == ("error", "model_not_loaded")
    with pytest.raises(ModelNotLoadedError):
        await given.engine.tokenize("hello")


async def test_a_cancelled_load_leaves_nothing(empty: Given) -> None:
    task = asyncio.create_task(empty.engine.load_model(load(empty.model), no_progress))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ModelNotLoadedError):
        await empty.engine.tokenize("hello")
    await empty.engine.load_model(load(empty.model, at=2), no_progress)


# — prompts —


async def test_prompts(given: Given) -> None:
    text = await given.engine.tokenize("hé")
    assert text.token_ids
    assert len(text.tokens) == len(text.token_ids)
    assert "".join(text.tokens) == "hé"
    assert (await given.engine.tokenize(text.token_ids)).token_ids == text.token_ids
    chat = await given.engine.tokenize([{"role": "user", "content": "hé"}])
    assert len(chat.token_ids) > len(text.token_ids)
    long_chat = await given.engine.tokenize([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert long_chat.token_ids != chat.token_ids


@pytest.mark.parametrize("prompt", ["", [], [260], [-1], [3, 10**9], "x" * 1000])
async def test_prompts_that_are_refused(given: Given, prompt: str | list[int]) -> None:
    with pytest.raises(BadRequestError):
        await given.engine.tokenize(prompt)


async def test_special_tokens_are_told(given: Given) -> None:
    chat = await given.engine.tokenize([{"role": "user", "content": "a"}])
    assert len(chat.special) == len(chat.token_ids)
    plain = await given.engine.tokenize("hello")
    assert plain.special == (False,) * 5
    ended = await given.engine.tokenize([*plain.token_ids, 256])
    assert ended.special == (False,) * 5 + (True,)


# — generations —


async def test_tokens_then_their_end(given: Given) -> None:
    ids = await given.ids()
    tokens, end = await read(given.engine.generate(request(ids, tokens=12)))
    assert end.reason == "length"
    assert tuple(token.id for token in tokens) == end.token_ids
    assert "".join(token.text for token in tokens) == end.text
    assert len(end.token_ids) == end.receipt.tokens_generated == 12
    assert end.receipt.tokens_prompt == len(ids)
    assert (end.receipt.tokens_edited, end.receipt.tokens_excluded, end.receipt.mean_relative_norm) == (0, 0, 0.0)
    assert end.edited == end.excluded == ()


async def test_a_stream_is_over_after_its_end(given: Given) -> None:
    stream = given.engine.generate(request(await given.ids(), tokens=2))
    assert len([item async for item in stream]) == 3
    assert [item async for item in stream] == []


async def test_the_same_request_gives_the_same_text(given: Given) -> None:
    ids = await given.ids()
    sampled = [await finished(given.engine, request(ids, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1]
    assert sampled[0].token_ids != sampled[2].token_ids
    greedy = [await finished(given.engine, request(ids, seed=seed)) for seed in (1, 2)]
    assert greedy[0].token_ids == greedy[1].token_ids


async def test_texts_beside_each_other_are_as_each_alone(given: Given) -> None:
    prompts = [await given.ids(text) for text in ("one", "two and more", "three", "four!")]
    alone = [await finished(given.engine, request(ids, temperature=1.0, seed=7)) for ids in prompts]
    streams = [given.engine.generate(request(ids, temperature=1.0, seed=7)) for ids in prompts]
    together = await asyncio.gather(*(read(stream) for stream in streams))
    assert [apart(end) for _, end in together] == [apart(end) for end in alone]


async def test_the_context_ends_the_text(given: Given) -> None:
    facts = await given.engine.load_model(load(given.model), no_progress)
    ids = (await given.ids("ab"))[:1] * (facts.context_length - 2)
    end = await finished(given.engine, request(ids, tokens=100))
    assert (end.reason, end.receipt.tokens_generated) == ("length", 3)


async def test_a_stop_string_ends_the_text_before_it(given: Given) -> None:
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=30, temperature=1.0))
    stop = whole.text[10:13]
    tokens, end = await read(given.engine.generate(request(ids, tokens=30, temperature=1.0, stop=("zzzz", stop))))
    assert end.reason == "stop"
    assert end.text == whole.text[: whole.text.index(stop)]
    assert "".join(token.text for token in tokens) == end.text
    assert end.token_ids == whole.token_ids[: len(end.token_ids)]


async def test_scores(given: Given) -> None:
    ids = await given.ids()
    plain = await read(given.engine.generate(request(ids)))
    assert [(token.scored, token.top) for token in plain[0]] == [(None, ())] * 8
    tokens, end = await read(given.engine.generate(request(ids, logprobs=3)))
    assert end == plain[1]
    for token in tokens:
        assert token.scored is not None
        assert token.scored.id == token.id
        assert token.scored == token.top[0], "greedy takes the most probable one"
        assert len(token.top) == 3
        assert 0 >= token.top[0].logprob >= token.top[1].logprob >= token.top[2].logprob
        assert len({each.id for each in token.top}) == 3
    assert tokens[0].offset == 0
    offsets = [token.offset for token in tokens]
    assert offsets == sorted(offsets)
    (first, *_), _ = await read(given.engine.generate(request(ids, logprobs=0)))
    assert (first.scored is None, first.top) == (False, ())


async def test_deterministic_where_it_can_be_promised(given: Given) -> None:
    ids = await given.ids()
    await finished(given.engine, request(ids, deterministic=True))
    await given.engine.load_model(load(given.model, at=2, dtype="bfloat16"), no_progress)
    with pytest.raises(SAEUnsupportedError):
        given.engine.generate(request(ids, deterministic=True))


async def test_too_many_texts_are_refused(given: Given) -> None:
    ids = await given.ids()
    streams = [given.engine.generate(request(ids, tokens=20)) for _ in range(5)]
    with pytest.raises(MailboxFullError) as caught:
        given.engine.generate(request(ids))
    assert caught.value.fields["retry_after"] > 0
    ends = await asyncio.gather(*(read(stream) for stream in streams))
    assert {end.reason for _, end in ends} == {"length"}
    assert (await finished(given.engine, request(ids))).reason == "length"


async def test_closing_a_stream_frees_its_place(given: Given) -> None:
    ids = await given.ids()
    for _ in range(10):
        async with contextlib.aclosing(given.engine.generate(request(ids, tokens=100))) as stream:
            assert isinstance(await anext(stream), Token)
    assert (await finished(given.engine, request(ids))).reason == "length"


async def test_of_those_that_wait_each_share_begins_one_in_turn(given: Given) -> None:
    """Two run and three wait, of which the other share's is the last to come and the second to begin."""
    ids, order = await given.ids(), list[str]()

    async def run(name: str) -> None:
        asked = replace(request(ids, tokens=6), share=name[0], generation_id=name)
        stream = given.engine.generate(asked)
        stream.begun.add_done_callback(lambda _: order.append(name))
        await read(stream)

    await asyncio.gather(*(run(name) for name in ("a1", "a2", "a3", "a4", "b1")))
    assert order == ["a1", "a2", "a3", "b1", "a4"]
