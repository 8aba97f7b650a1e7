"""JSON of the real model, whose tokens are many bytes long, and whose end token is its tokenizer's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import jsonschema
import pytest

from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from tests.engine.asking import active, attach, finished, load, no_progress, request

pytestmark = [pytest.mark.anyio, pytest.mark.model]

POINT = HookPoint("resid_post", 15)
SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog", "bird"]},
        "name": {"type": "string", "maxLength": 12},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
    },
    "required": ["animal", "name", "legs"],
    "additionalProperties": False,
}


async def test_json_of_the_real_model(real_model: Path, demo_sae: Path) -> None:
    engine = TorchEngine(EngineSettings(threads=1))
    try:
        await engine.load_model(load(str(real_model)), no_progress)
        await engine.attach(attach(7, point=POINT, d_in=576, d_sae=2304), str(demo_sae))
        ids = (await engine.tokenize([{"role": "user", "content": "Describe an animal in JSON."}])).token_ids
        grammar = await engine.grammar(json.dumps(SCHEMA))
        steered = active(7, Edit(feature=584, strength=85.0), point=POINT)
        asks = [
            request(ids, tokens=90, grammar=grammar),
            request(ids, steered, tokens=90, grammar=grammar),
            request(ids, tokens=90, temperature=1.0, seed=2, grammar=grammar, presence_penalty=0.5),
        ]
        for end in await asyncio.gather(*(finished(engine, each) for each in asks)):
            assert end.reason == "stop", end.text
            jsonschema.validate(json.loads(end.text), SCHEMA)
    finally:
        await engine.close()
