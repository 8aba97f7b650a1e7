"""What the port `Engine` promises, run against the fake and against torch on a tiny random llama."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import Edit, HookPoint, ModelFacts, Span, StopWhen, Unit, When
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import (
    BadRequestError,
    FeatureOutOfRangeError,
    MailboxFullError,
    ModelNotFoundError,
    ModelNotLoadedError,
    SAEIncompatibleError,
    SAENotAttachedError,
    SAEUnsupportedError,
)
from sae_actor.ports import Engine, Token, Watch
from tests.engine.asking import active, apart, attach, detach, finished, load, no_progress, read, request
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.anyio

STRONG = Edit(feature=3, strength=40.0)


@dataclass
class Given:
    """An engine with a model, and where to find its SAE."""

    engine: Engine
    model: str
    sae: str

    async def ids(self, text: str = "hello world") -> tuple[int, ...]:
        return (await self.engine.tokenize(text)).token_ids

    async def attach(self, at: int) -> int:
        return (await self.engine.attach(attach(at), self.sae)).device_bytes


@pytest.fixture(params=["fake", "torch"])
async def empty(request: pytest.FixtureRequest, tiny_llama: Path, tiny_sae: Path) -> AsyncIterator[Given]:
    engine: Engine
    if request.param == "fake":
        engine = FakeEngine(
            max_running=2, max_waiting=2, hidden_size=32, num_layers=3, step_seconds=0.001, drain_seconds=0.05
        )
    else:
        engine = TorchEngine(EngineSettings(max_running=2, max_waiting=2, threads=1, drain_seconds=0.05))
    yield Given(engine, str(tiny_llama), str(tiny_sae))
    await engine.close()


@pytest.fixture
async def given(empty: Given) -> Given:
    await empty.engine.load_model(load(empty.model), no_progress)
    return empty


# — the model —


async def test_a_model_is_loaded_once_per_request(empty: Given) -> None:
    seen: list[str] = []
    facts = await empty.engine.load_model(load(empty.model), lambda name, _: seen.append(name))
    assert isinstance(facts, ModelFacts)
    assert facts.model_id == empty.model
    assert (facts.num_layers, facts.hidden_size, facts.dtype, facts.device) == (3, 32, "float32", "cpu")
    assert facts.widths["resid_post"] == 32
    assert facts.memory_bytes > 0
    assert facts.has_chat_template
    assert facts.environment
    assert set(seen) == {"model_progress"}
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


# — text —


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
    streams = [given.engine.generate(request(ids, tokens=20)) for _ in range(4)]
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


# — SAEs —


async def test_an_sae_without_edits_changes_nothing(given: Given) -> None:
    ids = await given.ids()
    bare = await finished(given.engine, request(ids))
    assert await given.attach(5) > 0
    assert await finished(given.engine, request(ids, active(5))) == bare


async def test_an_edit_changes_the_text_and_is_counted(given: Given) -> None:
    ids = await given.ids()
    await given.attach(5)
    bare = await finished(given.engine, request(ids))
    end = await finished(given.engine, request(ids, active(5, STRONG)))
    assert end.token_ids != bare.token_ids
    run = len(ids) + end.receipt.tokens_generated - 1
    assert end.receipt.tokens_edited == run
    assert end.edited == ((0, run),)
    assert end.receipt.mean_relative_norm > 0
    assert (await finished(given.engine, request(ids))) == bare


@pytest.mark.parametrize(
    ("positions", "covered"),
    [
        ("all", ((0, 18),)),
        ("prompt", ((0, 11),)),
        ("generated", ((11, 18),)),
        ("response", ((10, 18),)),
        ("last_prompt", ((10, 11),)),
        (Span(tokens=(2, 3, 17, 500)), ((2, 4), (17, 18))),
        (Span(from_=9, to=13), ((9, 13),)),
        (Span(from_=16), ((16, 18),)),
        (Span(to=2), ((0, 2),)),
    ],
)
async def test_positions(given: Given, positions: str | Span, covered: tuple[tuple[int, int], ...]) -> None:
    """11 prompt tokens and 8 generated ones: 18 positions are run."""
    await given.attach(5)
    edit = Edit(feature=3, strength=0.1, positions=positions)  # type: ignore[arg-type]  # mypy sees str
    end = await finished(given.engine, request(await given.ids(), active(5, edit)))
    assert end.edited == covered
    assert end.receipt.tokens_edited == sum(behind - first for first, behind in covered)


async def test_a_condition_counts_where_it_holds(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    bare = await finished(given.engine, request(ids))
    always, never = (Edit(feature=3, strength=40.0, when=When(2, above)) for above in (-1.0, 1e6))
    held = await finished(given.engine, request(ids, active(5, always)))
    assert held.edited == ((0, 18),)
    assert held.token_ids != bare.token_ids
    assert (await finished(given.engine, request(ids, active(5, never)))).edited == ()


async def test_the_sink_is_left_out(given: Given) -> None:
    await given.attach(5)
    edit = Edit(feature=3, strength=0.1, exclude=("sink",))
    end = await finished(given.engine, request(await given.ids(), active(5, edit)))
    assert (end.excluded, end.edited) == (((0, 1),), ((1, 18),))
    assert (end.receipt.tokens_excluded, end.receipt.tokens_edited) == (1, 17)


async def test_reconstruct_covers_all_but_sinks(given: Given) -> None:
    await given.attach(5)
    end = await finished(given.engine, request(await given.ids(), active(5, mode="reconstruct")))
    assert (end.excluded, end.edited) == (((0, 1),), ((1, 18),))


CHAT = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "And you?"},
]


async def test_turns_of_a_chat(given: Given) -> None:
    chat = await given.engine.tokenize(CHAT)
    assert chat.turns is not None
    assert [turn.role for turn in chat.turns] == [message["role"] for message in CHAT]
    assert [turn.first for turn in chat.turns] == [0, *(turn.stop for turn in chat.turns[:-1])]
    assert ["".join(chat.tokens[slice(*turn.content)]) for turn in chat.turns] == [each["content"] for each in CHAT]
    assert chat.turns[-1].stop < len(chat.token_ids), "the answer that is opened is no turn"
    assert (await given.engine.tokenize("no chat")).turns == ()


async def test_positions_by_role(given: Given) -> None:
    await given.attach(5)
    chat = await given.engine.tokenize(CHAT)
    assert chat.turns is not None
    roles: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")
    for role in roles:
        edit = Edit(feature=3, strength=0.1, positions=Span(role=role))
        end = await finished(given.engine, request(chat.token_ids, active(5, edit), turns=chat.turns))
        covered = {at for turn in chat.turns if turn.role == role for at in range(turn.first, turn.stop)}
        assert {at for first, behind in end.edited for at in range(first, behind)} == covered
    with pytest.raises(BadRequestError):
        given.engine.generate(request(chat.token_ids, active(5, edit)))


async def test_what_the_template_wrote_is_left_out(given: Given) -> None:
    await given.attach(5)
    chat = await given.engine.tokenize(CHAT)
    assert chat.turns is not None
    said = {at for turn in chat.turns for at in range(*turn.content)}
    edit = Edit(feature=3, strength=0.1, positions="prompt", exclude=("template",))
    end = await finished(given.engine, request(chat.token_ids, active(5, edit), turns=chat.turns))
    assert {at for first, behind in end.edited for at in range(first, behind)} == said
    assert end.receipt.tokens_edited + end.receipt.tokens_excluded == len(chat.token_ids)
    plain = await finished(given.engine, request(await given.ids(), active(5, edit)))
    assert plain.edited == ((0, 11),), "a prompt that is no chat has no template"


async def test_special_tokens_are_left_out(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    edit = Edit(feature=3, strength=0.1, positions="prompt", exclude=("special", "sink"))
    end = await finished(given.engine, request((*ids[:4], 256, *ids[4:]), active(5, edit)))
    assert (end.excluded, end.edited) == (((0, 1), (4, 5)), ((1, 4), (5, 12)))


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


async def test_special_tokens_are_told(given: Given) -> None:
    chat = await given.engine.tokenize([{"role": "user", "content": "a"}])
    assert len(chat.special) == len(chat.token_ids)
    plain = await given.engine.tokenize("hello")
    assert plain.special == (False,) * 5
    ended = await given.engine.tokenize([*plain.token_ids, 256])
    assert ended.special == (False,) * 5 + (True,)


async def test_an_sae_that_does_not_fit(given: Given) -> None:
    with pytest.raises(SAEIncompatibleError) as caught:
        await given.engine.attach(attach(5, point=HookPoint("mlp_act", 1)), given.sae)
    assert caught.value.fields["sae_d_in"] == 32
    assert caught.value.fields["model_d"] != 32
    assert await given.engine.detach(detach(5), 0.0) == 0


async def test_attaching_twice_is_attaching_once(given: Given) -> None:
    first = await given.engine.attach(attach(5), given.sae)
    assert await given.engine.attach(attach(5), given.sae) == first
    assert first.memory_bytes == 4 * (32 * 24 + 24 + 24 * 32 + 32)
    assert first.dtype == "float32"


async def test_detaching_frees_the_bytes_once(given: Given) -> None:
    took = await given.attach(5)
    assert await given.engine.detach(detach(5), 1.0) == took
    assert await given.engine.detach(detach(5), 1.0) == 0


async def test_detaching_waits_for_texts(given: Given) -> None:
    await given.attach(5)
    stream = given.engine.generate(request(await given.ids(), active(5, STRONG), tokens=20))
    freed = asyncio.create_task(given.engine.detach(detach(5), 30.0))
    _, end = await read(stream)
    assert end.reason == "length"
    assert await freed > 0


async def test_detaching_ends_texts_that_take_too_long(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    running = given.engine.generate(request(ids, active(5, STRONG), tokens=110))
    other = given.engine.generate(request(ids, tokens=20))
    await anext(running)
    assert await given.engine.detach(detach(5), 0.0) > 0
    tokens, end = await read(running)
    assert end.reason == "intervention_removed"
    assert end.receipt.tokens_generated == len(tokens) + 1
    assert (await read(other))[1].reason == "length"


async def test_a_text_under_an_sae_that_is_gone(given: Given) -> None:
    end = await finished(given.engine, request(await given.ids(), active(5, STRONG)))
    assert (end.reason, end.token_ids) == ("intervention_removed", ())


async def test_what_is_not_retained_goes(given: Given) -> None:
    ids = await given.ids()
    await given.attach(5)
    await given.attach(6)
    running = given.engine.generate(request(ids, active(5, STRONG), tokens=110))
    await anext(running)
    given.engine.retain(Residents(model=1, saes=(6,)))
    assert (await finished(given.engine, request(ids, active(6, STRONG)))).reason == "length"
    assert (await read(running))[1].reason in ("intervention_removed", "length")
    await asyncio.sleep(0.1)
    assert await given.engine.detach(detach(5), 0.0) == 0
    assert await given.engine.detach(detach(6), 0.0) > 0
