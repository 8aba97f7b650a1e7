"""What a model would take, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizing import VOCABULARY

from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio


async def test_a_model_and_an_sae_next_to_it(service: Running) -> None:
    await service.command("LoadModel", model=MODEL)
    sae_id = await service.download("layer.1")
    weights, per_token, sae = 4 * 16 * VOCABULARY, 8 * 16 * 4, 4 * (16 * 32 + 32 + 32 * 16 + 16)
    answer = await service.client.get("/api/models/fit", params={"model": "org/other", "sae_id": sae_id})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    context = found["assumes"]["context"]
    assert (found["weights_bytes"], found["kv_bytes_per_token"], found["sae_bytes"]) == (weights, per_token, sae)
    assert found["needed_bytes"] == weights + sae + per_token * context
    assert (found["free_bytes"], found["fits"]) == (10**9, True)
    assert found["assumes"] | {"context": 0} == {
        "model_type": "fake", "dtype": "float32", "device": "cpu", "quantization": None, "context": 0,
        "state_bytes": 0,
    }  # fmt: skip
    assert (await service.client.get("/api/model")).json()["model_id"] == MODEL  # nothing was loaded


async def test_a_model_whose_weights_are_quantised(service: Running) -> None:
    answer = await service.client.get("/api/models/fit", params={"model": MODEL, "quantization": "nf4"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["weights_bytes"], found["assumes"]["quantization"]) == (16 * VOCABULARY, "nf4")
    await service.command("LoadModel", model=MODEL, quantization="nf4")
    assert (await service.client.get("/api/model")).json()["quantization"] == "nf4"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({}, 400, "bad_request"),
        ({"model": ""}, 400, "bad_request"),
        ({"model": "org/tiny", "dtype": "int3"}, 400, "bad_request"),
        ({"model": "org/tiny", "device": "tpu"}, 400, "bad_request"),
        ({"model": "org/tiny", "quantization": "int3"}, 400, "bad_request"),
        ({"model": "org/tiny", "revision": "../x"}, 400, "bad_request"),
        ({"model": "org/tiny", "sae_id": "nothing"}, 404, "sae_not_found"),
        ({"model": "org/missing"}, 404, "model_not_found"),
    ],
)
async def test_refusals(query: dict[str, str], status: int, code: str) -> None:
    async with serving(engine=FakeEngine(missing=frozenset({"org/missing"}))) as service:
        answer = await service.client.get("/api/models/fit", params=query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
