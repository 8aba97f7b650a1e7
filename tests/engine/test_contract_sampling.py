"""What the port `Engine` promises of settings that change which token is chosen, and of texts of a given form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from sae_actor.domain.refs import Edit
from sae_actor.errors import BadRequestError
from tests.engine.asking import active, finished, load, no_progress, read, request
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

END = 256
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
}


async def test_a_biased_token_is_all_there_is_or_never_comes(given: Given) -> None:
    ids = await given.ids()
    plain = await finished(given.engine, request(ids, tokens=10))
    always = await finished(given.engine, request(ids, tokens=10, logit_bias=((70, 100.0),)))
    assert always.token_ids == (70,) * 10
    common = max(plain.token_ids, key=plain.token_ids.count)
    never = await finished(given.engine, request(ids, tokens=10, logit_bias=((common, -100.0),)))
    assert common not in never.token_ids
    twice = await finished(given.engine, request(ids, tokens=10, temperature=1.0, logit_bias=((70, 100.0), (71, 0.5))))
    assert set(twice.token_ids) == {70}


async def test_a_biased_token_that_there_is_not(given: Given) -> None:
    facts = await given.engine.load_model(load(given.model), no_progress)
    assert facts.vocabulary is not None
    with pytest.raises(BadRequestError) as caught:
        given.engine.generate(request(await given.ids(), logit_bias=((facts.vocabulary, 1.0),)))
    assert caught.value.fields["param"] == "logit_bias"


@pytest.mark.parametrize("settings", [{"frequency_penalty": 20.0}, {"presence_penalty": 50.0}])
async def test_penalties_for_what_the_answer_has(given: Given, settings: dict[str, Any]) -> None:
    """With 70 and 71 far ahead of all others, they take turns; the prompt does not count."""
    ids = (70, 70, 70, 71)
    bias = ((70, 90.0), (71, 80.0))
    end = await finished(given.engine, request(ids, tokens=4, logit_bias=bias, **settings))
    assert set(end.token_ids[:2]) == {70, 71}
    assert end.token_ids[0] == 70
    plain = await finished(given.engine, request(ids, tokens=4, logit_bias=bias))
    assert plain.token_ids == (70,) * 4


async def test_a_penalty_for_what_prompt_and_answer_have(given: Given) -> None:
    ids = await given.ids()
    end = await finished(given.engine, request(ids, tokens=20, repetition_penalty=90.0))
    assert not {*ids} & {*end.token_ids[:8]}
    assert len(set(end.token_ids[:8])) == 8


async def test_settings_of_one_text_change_no_other(given: Given) -> None:
    ids = await given.ids()
    plain = request(ids, tokens=20, temperature=1.0, seed=3)
    changed = request(ids, tokens=20, temperature=1.0, seed=3, presence_penalty=1.5, repetition_penalty=1.3)
    alone = [await finished(given.engine, each) for each in (plain, changed)]
    together = await asyncio.gather(*(finished(given.engine, each) for each in (plain, changed)))
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert alone[0].token_ids != alone[1].token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
async def test_a_text_follows_its_schema(given: Given, temperature: float) -> None:
    grammar = await given.engine.grammar(json.dumps(SCHEMA))
    ids = await given.ids()
    for seed in range(3):
        tokens, end = await read(
            given.engine.generate(request(ids, tokens=110, temperature=temperature, seed=seed, grammar=grammar))
        )
        assert end.reason == "stop"
        assert end.token_ids[-1] == END
        assert "".join(token.text for token in tokens) == end.text
        jsonschema.validate(json.loads(end.text), SCHEMA)


async def test_steered_and_next_to_others(given: Given) -> None:
    await given.attach(7)
    grammar = await given.engine.grammar(json.dumps(SCHEMA))
    ids = await given.ids()
    steered = active(7, Edit(feature=3, strength=40.0))
    asks = [
        request(ids, steered, tokens=110, temperature=1.0, seed=1, grammar=grammar),
        request(ids, tokens=20, temperature=1.0, seed=1),
    ]
    alone = [await finished(given.engine, each) for each in asks]
    together = await asyncio.gather(*(finished(given.engine, each) for each in asks))
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    jsonschema.validate(json.loads(together[0].text), SCHEMA)
    assert together[0].receipt.tokens_edited > 0


async def test_a_text_that_is_cut_is_the_beginning_of_one(given: Given) -> None:
    grammar = await given.engine.grammar(json.dumps(SCHEMA))
    ids = await given.ids()
    whole = await finished(given.engine, request(ids, tokens=110, temperature=1.0, grammar=grammar))
    for most in (1, 2, 9, len(whole.token_ids) - 1):
        cut = await finished(given.engine, request(ids, tokens=most, temperature=1.0, grammar=grammar))
        assert (cut.reason, cut.token_ids) == ("length", whole.token_ids[:most])


async def test_a_form_and_the_ways_to_end(given: Given) -> None:
    grammar = await given.engine.grammar('{"const": "ab"}')
    ids = await given.ids()
    early = await finished(given.engine, request(ids, tokens=50, grammar=grammar, min_tokens=30))
    assert (early.text, early.reason) == ('"ab"', "stop"), "the form leaves nothing else"
    ignored = await finished(given.engine, request(ids, tokens=9, grammar=grammar, ignore_eos=True))
    assert (ignored.text, ignored.reason) == ('"ab"', "length")
    assert set(ignored.token_ids[4:]) == {END}
    stopped = await finished(given.engine, request(ids, tokens=50, grammar=grammar, stop=("b",)))
    assert (stopped.text, stopped.reason) == ('"a', "stop")
    stops = early.token_ids[:-1]
    held = await finished(given.engine, request(ids, tokens=50, grammar=grammar, min_tokens=3, stop_token_ids=stops))
    assert (held.text, held.reason, len(held.token_ids)) == ('"ab', "stop", 4), "before the fourth they are no end"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"type": "nonsense"}', "nonsense"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"$ref": "http://localhost/schema"}', "localhost"),
        ('{"type": "string", "pattern": "(?=a)b"}', ""),
        ('{"type": "string", "minLength": 3, "maxLength": 2}', ""),
    ],
)
async def test_what_has_no_grammar(given: Given, schema: str, reason: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        await given.engine.grammar(schema)
    assert caught.value.fields["param"] == "response_format"
    assert reason in caught.value.detail


async def test_a_grammar_is_compiled_once(given: Given) -> None:
    first = await given.engine.grammar(json.dumps(SCHEMA))
    assert await given.engine.grammar(json.dumps(SCHEMA)) is first


async def test_a_form_without_its_grammar_is_no_request(given: Given) -> None:
    grammar = await given.engine.grammar('{"type": "object"}')
    with pytest.raises(BadRequestError):
        given.engine.generate(request(await given.ids(), grammar=grammar, response_format=None))
