"""Masks are those of llguidance's own matcher; log probabilities know none of them; hostile schemas hold up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import pytest
import torch
from msgspec.structs import replace

from sae_actor.domain.chats import Reasoning
from sae_actor.domain.refs import Edit, StopWhen
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.grammars import SETTINGS, Grammars, GrammarState, Masks, byte_tokens
from sae_actor.errors import BadRequestError, SAEUnsupportedError
from tests.engine.asking import active, attach, finished, load, no_progress, read, request
from tests.engine.tiny import END, VOCABULARY, save_tiny_model, tiny_tokenizer

pytestmark = pytest.mark.anyio

PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", "c d"]}, "maxItems": 3},
        "owner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/owner"}]},
    },
    "required": ["name", "legs", "tags", "owner"],
    "additionalProperties": False,
    "$defs": {"owner": {"type": "object", "properties": {"id": {"type": "boolean"}}, "required": ["id"],
                        "additionalProperties": False}},
}  # fmt: skip
SCHEMAS: dict[str, Any] = {
    "an object": PET,
    "a choice": {"enum": ["yes", "no", 3, None]},
    "either": {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 5, "maximum": 70}]},
    "a pattern": {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$", "maxLength": 9},
    "a number": {"type": "number", "minimum": -2, "exclusiveMaximum": 3.5},
    "a date": {"type": "string", "format": "date"},
    "pairs": {"type": "array", "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 9}, {"const": "é"}],
              "items": False, "minItems": 2},
}  # fmt: skip


@pytest.fixture
def grammars() -> Grammars:
    return Grammars(byte_tokens(tiny_tokenizer(), VOCABULARY, [END]))


@pytest.mark.parametrize("few", [0, 100], ids=["next to each other", "one by one"])
async def test_masks_are_those_of_the_library_s_matcher(
    grammars: Grammars, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows at different places of different grammars, in one step and for a wider vocabulary than theirs."""
    monkeypatch.setattr("sae_actor.engine.decoding.grammars.FEW", few)
    monkeypatch.setattr("sae_actor.engine.decoding.grammars.MANY_CORES", 0)
    generator, masks = torch.Generator().manual_seed(0), Masks()
    compiled = [grammars.compiled(json.dumps(schema)) for schema in SCHEMAS.values()]
    states = [GrammarState(each, frozenset({END})) for each in compiled]
    assert grammars.tokens is not None
    plain = [
        llguidance.LLMatcher(
            grammars.tokens, llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SETTINGS)
        )
        for schema in SCHEMAS.values()
    ]
    for _ in range(60):
        logits = torch.randn(len(states), VOCABULARY + 30, generator=generator)
        masked = logits.clone()
        masks.apply(masked, states)
        for row, (state, matcher) in enumerate(zip(states, plain, strict=True)):
            bits = matcher.compute_bitmask()
            wanted = [at for at in range(VOCABULARY) if bits[at // 8] >> at % 8 & 1] if not state.over else [END]
            assert masked[row].isfinite().nonzero().squeeze(1).tolist() == wanted
            assert torch.equal(masked[row, wanted], logits[row, wanted])
            token = int(masked[row].argmax())
            if token != END:
                assert matcher.consume_token(token)
            state.add(token)
    assert any(state.matcher is None for state in states), "some have ended"


@pytest.mark.parametrize("text", ['{"a":1}', '{"a": 1}', '{\n  "a": 1\n}', '{\n\t"a": 1\n}'])
async def test_json_as_it_is_usually_written(grammars: Grammars, text: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    matcher = grammars.compiled(json.dumps(schema)).matcher()
    ids = tiny_tokenizer().encode(text, add_special_tokens=False)
    assert matcher.validate_tokens(ids) == len(ids)


@pytest.mark.parametrize("name", SCHEMAS)
async def test_random_texts_validate(engine: TorchEngine, tiny_sae: Path, name: str) -> None:
    """Alone and in a batch with others, steered and not."""
    await engine.attach(attach(7), str(tiny_sae))
    ids = (await engine.tokenize("hello")).token_ids
    grammar = await engine.grammar(json.dumps(SCHEMAS[name]))
    steered = active(7, Edit(feature=3, strength=25.0))
    asks = []
    for seed in range(4):
        saes = (steered,) if seed % 2 else ()
        asks.append(request(ids, *saes, tokens=122, temperature=1.0, seed=seed, grammar=grammar, top_p=0.9))
        asks.append(request(ids, *saes, tokens=30, temperature=1.0, seed=seed, presence_penalty=0.5))
    together = await asyncio.gather(*(finished(engine, each) for each in asks))
    alone = [await finished(engine, each) for each in asks]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    for end in together[::2]:
        assert end.reason in ("stop", "length")
        if end.reason == "stop":
            jsonschema.validate(json.loads(end.text), SCHEMAS[name])
    assert sum(end.reason == "stop" for end in together[::2]) >= 3


async def test_log_probabilities_are_the_model_s_own(engine: TorchEngine) -> None:
    ids = (await engine.tokenize("hello")).token_ids
    grammar = await engine.grammar(json.dumps(PET))
    changed = request(
        ids, tokens=20, temperature=1.0, logprobs=5, grammar=grammar, repetition_penalty=1.7, frequency_penalty=1.0,
        logit_bias=((9, 50.0),), top_k=3,
    )  # fmt: skip
    tokens, end = await read(engine.generate(changed))
    forced = replace(request(ids, logprobs=5), forced=end.token_ids)
    plain, _ = await read(engine.generate(forced))
    for one, other in zip(tokens, plain, strict=True):
        assert one.scored is not None
        assert other.scored is not None
        assert one.scored.id == other.scored.id
        assert one.scored.logprob == pytest.approx(other.scored.logprob, abs=1e-5)
        assert [each.id for each in one.top] == [each.id for each in other.top]
    processed = replace(forced, sampling=changed.sampling, grammar=grammar, processed_scores=True)
    chosen, _ = await read(engine.generate(processed))
    assert chosen[0].scored is not None
    assert chosen[0].scored.logprob == pytest.approx(0.0, abs=1e-5), "an object begins with a brace alone"
    assert {each.logprob for each in chosen[0].top[1:]} == {-9999.0}


async def test_a_form_and_a_feature_that_stops(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(7), str(tiny_sae))
    ids = (await engine.tokenize("hello")).token_ids
    grammar = await engine.grammar(json.dumps(PET))
    never = StopWhen(sae=active(7), feature=3, above=1e6, exclude=())
    at_once = replace(never, above=-1.0)
    whole = await finished(engine, request(ids, tokens=122, grammar=grammar, stop_when=never, temperature=1.0))
    assert whole.token_ids[-1] == END
    cut = await finished(engine, request(ids, tokens=122, grammar=grammar, stop_when=at_once, temperature=1.0))
    assert (cut.reason, cut.token_ids) == ("feature", whole.token_ids[:2])


async def test_a_model_without_an_end_token_ends_with_its_form(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "endless")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": None}))
    engine = TorchEngine(EngineSettings(threads=1))
    try:
        facts = await engine.load_model(load(str(folder)), no_progress)
        assert facts.end_ids == ()
        ids = (await engine.tokenize("hello")).token_ids
        for schema, text in (('{"const": "ab"}', '"ab"'), ('{"enum": [1]}', "1")):
            end = await finished(engine, request(ids, tokens=50, grammar=await engine.grammar(schema)))
            assert (end.reason, end.text) == ("stop", text)
    finally:
        await engine.close()


async def test_reasoning_comes_before_the_form(engine: TorchEngine) -> None:
    """Where the prompt has opened it; a chat that has not is bound from its first token."""
    grammar = await engine.grammar('{"enum": [12, 34]}')
    prompt = await engine.tokenize("hello <t>")
    apart = Reasoning(format="block", begin="<t>", end="e")
    soon = ((*(await engine.tokenize("e")).token_ids, 4.0),)
    asked = request(
        prompt.token_ids, tokens=110, temperature=2.0, seed=5, grammar=grammar, reasoning=apart, logit_bias=soon
    )
    tokens, end = await read(engine.generate(asked))
    assert end.reason == "stop"
    content = "".join(token.content for token in tokens)
    assert json.loads(content) in (12, 34)
    assert end.reasoning_tokens > 1
    bound = replace(asked, token_ids=(await engine.tokenize("hello")).token_ids)
    assert json.loads((await finished(engine, bound)).text) in (12, 34)


async def test_a_tokenizer_without_bytes_is_refused() -> None:
    with pytest.raises(SAEUnsupportedError) as caught:
        Grammars(byte_tokens(object(), VOCABULARY, [END])).compiled("{}")
    assert caught.value.fields["param"] == "response_format"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "wide": nested(9),
    "deep": {"allOf": [{"anyOf": [{"type": "object", "properties": {f"{k}{i}": {"type": "string"}}} for k in "pq"]}
                       for i in range(12)]},
    "patterns": {"type": "string", "pattern": "(((a{1,900}){1,900}){1,900}|b{1,9000})*"},
    "numbers": {"type": "integer", "multipleOf": 99991, "minimum": 3},
    "many": {"enum": [f"{i:0>9}" for i in range(5000)]},
    "long": {"type": "array", "items": {"type": "string", "minLength": 10**8}, "minItems": 10**8},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_schema_holds_up_nobody(engine: TorchEngine, name: str) -> None:
    """While it is compiled, and while a text follows it, the loop answers and another text goes on."""
    ids = (await engine.tokenize("hello")).token_ids
    other = asyncio.create_task(finished(engine, request(ids, tokens=100, temperature=1.0)))
    longest, before, over = 0.0, time.monotonic(), asyncio.Event()

    async def beat() -> None:
        nonlocal longest, before
        while not over.is_set():
            await asyncio.sleep(0.001)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()

    beating = asyncio.create_task(beat())
    with contextlib.suppress(BadRequestError):
        grammar = await engine.grammar(json.dumps(HOSTILE[name]))
        end = await finished(engine, request(ids, tokens=40, temperature=1.0, grammar=grammar))
        assert end.reason in ("stop", "length") or end.error_code == "bad_request"
    assert (await other).reason in ("stop", "length")
    over.set()
    await beating
    assert longest < 2.0
