"""`log reproduce` follows what changed the choice of tokens: penalties, bias, top_k, min_p, and a JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import jsonschema
import pytest
from msgspec.structs import replace

from sae_actor.domain.chats import Reasoning
from sae_actor.domain.events import Sampling
from tests.engine.tiny import END, save_tiny_model, save_tiny_sae
from tests.reproducing.conftest import Reproduce
from tests.reproducing.making import View, changing, edit, forged, recording

WILD = Sampling(temperature=1.4, top_p=0.95, max_tokens=60, seed=8)
CHANGED = replace(
    WILD,
    top_k=30,
    min_p=0.02,
    repetition_penalty=1.4,
    frequency_penalty=0.7,
    presence_penalty=-0.4,
    logit_bias=((65, 2.5), (66, -100.0)),
)
SCHEMA = (
    '{"type":"object","properties":{"kind":{"enum":["cat","dog"]},"legs":{"type":"integer","maximum":9,"minimum":0}},'
    '"required":["kind","legs"],"additionalProperties":false}'
)


class Made(NamedTuple):
    folder: Path
    recorded: bool
    """Texts are in the log."""
    texts: dict[str, str]
    tokens: dict[str, tuple[int, ...]]
    said: dict[str, str]


@pytest.fixture(scope="module", params=[True, False], ids=["with texts", "digests"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("changed")
    model, sae = save_tiny_model(home / "model"), save_tiny_sae(home / "sae")
    texts: dict[str, str] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    said: dict[str, str] = {}

    async def live() -> None:
        async with recording(home / "log", model, record_text=request.param) as service:

            async def say(name: str, sampling: Sampling, **asked: Any) -> None:
                texts[name], done = await service.say("hello", sampling, **asked)
                tokens[name], said[name] = done.finished.token_ids, done.finished.text

            await service.steer(await service.attach(sae), edit(3, 20.0))
            await say("plain", WILD)
            await say("changed", CHANGED)
            await say("changed, greedy", replace(CHANGED, temperature=0.0))
            await say("schema", WILD, schema=SCHEMA)
            await say("schema, greedy", replace(CHANGED, temperature=0.0, min_tokens=50), schema=SCHEMA)
            thinking = Reasoning(format="block", begin="o", end="a")
            await say("schema, after thinking", replace(WILD, max_tokens=110), schema=SCHEMA, reasoning=thinking)

    anyio.run(live)
    return Made(home / "log", request.param, texts, tokens, said)


def files(tmp_path: Path, schema: str = SCHEMA) -> tuple[str, ...]:
    (tmp_path / "prompt").write_text("hello")
    (tmp_path / "schema").write_text(json.dumps(json.loads(schema), indent=4))
    return "--prompt-file", str(tmp_path / "prompt"), "--schema-file", str(tmp_path / "schema")


def test_texts_come_again(made: Made, tmp_path: Path, reproduce: Reproduce) -> None:
    code, views = reproduce(made.folder, "--all", *files(tmp_path))
    found = {view["generation_id"]: view for view in views}
    assert {name: found[each]["verdict"] for name, each in made.texts.items()} == dict.fromkeys(made.texts, "identical")
    assert code == 0
    assert len(set(made.tokens.values())) == len(made.tokens)
    for name in ("schema", "schema, greedy"):
        assert made.tokens[name][-1] == END
        jsonschema.validate(json.loads(made.said[name]), json.loads(SCHEMA))


def test_after_thoughts_the_rest_follows_the_schema(made: Made) -> None:
    """Here the prompt has opened them."""
    thought, mark, rest = made.said["schema, after thinking"].partition("a")
    assert thought
    assert mark
    assert made.tokens["schema, after thinking"][-1] == END
    jsonschema.validate(json.loads(rest), json.loads(SCHEMA))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("changed", {"repetition_penalty": 1.0, "frequency_penalty": 0.0}),
        ("changed, greedy", {"logit_bias": [[65, 30.0]]}),
        ("changed", {"top_k": 1}),
        ("changed", {"min_p": 1.0}),
        ("plain", {"presence_penalty": 2.0}),
        ("schema", {"logit_bias": [[END, 1.0], [123, -100.0], [34, 100.0]]}),
    ],
)
def test_other_settings_are_noticed(made: Made, name: str, change: View, tmp_path: Path, reproduce: Reproduce) -> None:
    def other(data: View) -> None:
        if "sampling" in data:
            data["sampling"] = {**data["sampling"], **change}

    folder = tmp_path / "log"
    anyio.run(forged, made.folder, folder, changing(made.texts[name], other))
    code, (view,) = reproduce(folder, made.texts[name], *files(tmp_path))
    assert view["tokens"]["same"] is (name == "schema")
    assert view["verdict"] == ("identical" if name == "schema" else "different")
    assert (code == 0) is (name == "schema")
    if view["verdict"] == "different" and "choices" in view:
        assert any(each["gap"] is None or each["gap"] > view["tolerance"] for each in view["choices"])


def test_a_schema_that_is_not_on_record(made: Made, tmp_path: Path, reproduce: Reproduce) -> None:
    name = made.texts["schema"]
    (tmp_path / "prompt").write_text("hello")
    code, (view,) = reproduce(made.folder, name, "--prompt-file", str(tmp_path / "prompt"))
    if made.recorded:
        assert (code, view["verdict"]) == (0, "identical")
        return
    assert view["verdict"] == "not_comparable"
    assert view["reason"] == "its JSON schema was not recorded ([audit] record_text); give it with --schema-file"
    code, (view,) = reproduce(made.folder, name, *files(tmp_path, '{"type": "object"}'))
    assert view["reason"] == "the JSON schema of the file does not match the recorded digest"
    whole = {"type": "json_schema", "json_schema": {"name": "a", "schema": json.loads(SCHEMA)}}
    code, (view,) = reproduce(made.folder, name, *files(tmp_path, json.dumps(whole)))
    assert (code, view["verdict"]) == (0, "identical")
