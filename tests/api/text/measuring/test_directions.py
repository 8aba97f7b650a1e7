"""Directions: means of texts, or by chance; kept as vectors, with what they were made from on record."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import Any

import pytest

from sae_actor.ports import GenerationRequest
from tests.fakes.text import RunningText

from ...conftest import Running, serving

pytestmark = pytest.mark.anyio

POINT = {"kind": "resid_post", "layer": 1}
TEXTS = {"name": "warm", "hook_point": POINT, "positive": ["abc", "bd"], "negative": ["xyz"]}
CHANCE = {"name": "chance", "hook_point": POINT, "random_seed": 7, "norm_of": 2.5}


def told(text: str) -> list[float]:
    """What the fake model gives of a text but for its first token: each at the place of its number."""
    rows = [[1 + (byte if byte % 16 == n else 0.0) for n in range(16)] for byte in text.encode()[1:]]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


async def test_the_difference_of_means(service: Running) -> None:
    await service.command("LoadModel", model="tiny")
    answer = await service.client.post("/api/directions", json=TEXTS)
    assert answer.status_code == 201, answer.text
    sae = answer.json()
    assert (sae["source"], sae["architecture"], sae["d_sae"], sae["names"]) == ("vectors", "vectors", 1, ["warm"])
    assert (sae["name"], sae["hook_point"], sae["d_in"]) == ("warm", POINT, 16)
    ((_, kept),) = [call for call in service.hub.calls if call[0] == "keep_vectors"]
    positive = [(a + b) / 2 for a, b in zip(told("abc"), told("bd"), strict=True)]
    assert kept.rows[0] == pytest.approx([a - b for a, b in zip(positive, told("xyz"), strict=True)])
    made = sae["made_from"]
    assert (made["kind"], made["model"]) == ("difference_of_means", "tiny")
    assert made["positive"] == {
        "texts": 2,
        "sha256": hashlib.sha256(json.dumps(["abc", "bd"], separators=(",", ":")).encode()).hexdigest(),
        "tokens": 3,
        "excluded": 2,
    }
    assert (made["negative"]["texts"], made["negative"]["tokens"]) == (1, 2)
    norms = sorted(math.hypot(*([1.0] * 15), 1 + byte) for byte in (98, 99, 100, 121, 122))
    assert sae["median_norm"] == pytest.approx(norms[2])
    (asked,) = [each for each in await service.events() if each["type"] == "DownloadRequested"]
    assert asked["data"]["made_from"] == made
    again = await service.client.post("/api/directions", json=TEXTS)
    assert (again.status_code, again.json()["sae_id"]) == (200, sae["sae_id"])


async def test_of_chats(service: Running) -> None:
    await service.command("LoadModel", model="tiny")
    chat = [{"role": "user", "content": "hi", "name": "Ann"}]
    answer = await service.client.post("/api/directions", json={**TEXTS, "positive": [chat, "abc"]})
    assert answer.status_code == 201, answer.text
    ((_, kept),) = [call for call in service.hub.calls if call[0] == "keep_vectors"]
    written = "<user>hi\n<assistant>"
    positive = [(a + b) / 2 for a, b in zip(told(written), told("abc"), strict=True)]
    assert kept.rows[0] == pytest.approx([a - b for a, b in zip(positive, told("xyz"), strict=True)])
    made = answer.json()["made_from"]["positive"]
    assert made["texts"] == 2
    assert made["tokens"] == len(written) - 1 + 2
    digested = json.dumps([[{"role": "user", "content": "hi"}], "abc"], separators=(",", ":"))
    assert made["sha256"] == hashlib.sha256(digested.encode()).hexdigest()


async def test_each_text_runs_alone(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what else runs does not change the last bits, and with them the digest in the id."""
    asked: list[GenerationRequest] = []
    generate = service.engine.generate

    def listening(request: GenerationRequest) -> RunningText:
        asked.append(request)
        return generate(request)

    monkeypatch.setattr(service.engine, "generate", listening)
    await service.command("LoadModel", model="tiny")
    assert (await service.client.post("/api/directions", json=TEXTS)).status_code == 201
    assert [each.alone for each in asked] == [True] * 3


async def test_a_random_direction_of_a_length(service: Running) -> None:
    await service.command("LoadModel", model="tiny")
    answer = await service.client.post("/api/directions", json=CHANCE)
    assert answer.status_code == 201, answer.text
    assert answer.json()["made_from"] == {
        "kind": "random",
        "model": "tiny",
        "commit": answer.json()["made_from"]["commit"],
        "random_seed": 7,
        "norm": 2.5,
    }
    ((_, kept),) = [call for call in service.hub.calls if call[0] == "keep_vectors"]
    generator = random.Random(7)
    row = [generator.gauss(0.0, 1.0) for _ in range(16)]
    assert kept.rows[0] == pytest.approx([2.5 * value / math.hypot(*row) for value in row])
    assert math.hypot(*kept.rows[0]) == pytest.approx(2.5)
    other = (await service.client.post("/api/directions", json={**CHANCE, "random_seed": 8})).json()
    assert other["sae_id"] != answer.json()["sae_id"]


async def test_as_long_as_a_feature() -> None:
    async with serving(max_attachments=2) as service:
        sae_id = await service.ready()
        body = {**CHANCE, "norm_of": {"sae_id": sae_id, "feature": 3}}
        made = (await service.client.post("/api/directions", json=body)).json()["made_from"]
        assert (made["norm"], made["norm_of"]) == (1.0, {"sae_id": sae_id, "feature": 3})
        far = await service.client.post("/api/directions", json={**body, "norm_of": {"sae_id": sae_id, "feature": 99}})
        assert (far.status_code, far.json()["code"]) == (422, "feature_out_of_range")
        await service.client.post(f"/api/saes/{sae_id}/detach")
        gone = await service.client.post("/api/directions", json=body)
        assert (gone.status_code, gone.json()["code"]) == (409, "sae_not_attached")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"positive": []}, "bad_request"),
        ({"positive": [""]}, "bad_request"),
        ({"positive": ["a"] * 257}, "bad_request"),
        ({"negative": None}, "bad_request"),
        ({"random_seed": 1}, "bad_request"),
        ({"positive": None, "negative": None}, "bad_request"),
        ({"positive": None, "negative": None, "random_seed": 1}, "bad_request"),
        ({"positive": None, "negative": None, "random_seed": 1, "norm_of": 0}, "bad_request"),
        ({"positive": ["xyz"]}, "bad_request"),
        ({"positive": ["a"]}, "bad_request"),
        ({"positive": [[]]}, "bad_request"),
        ({"positive": [[{"role": "wizard", "content": "a"}]]}, "bad_request"),
        ({"hook_point": {"kind": "resid_post", "layer": 99}}, "layer_out_of_range"),
        ({"hook_point": {"kind": "mlp_out", "layer": 1, "before": "gain"}}, "sae_incompatible"),
        ({"name": "a b"}, "bad_request"),
    ],
    ids=str,
)
async def test_refused(service: Running, changes: dict[str, Any], code: str) -> None:
    await service.command("LoadModel", model="tiny")
    answer = await service.client.post("/api/directions", json={**TEXTS, **changes})
    assert answer.json()["code"] == code, answer.text
    assert answer.status_code == (400 if code == "bad_request" else 422)
    assert service.hub.vectors == {}


async def test_without_a_model(service: Running) -> None:
    answer = await service.client.post("/api/directions", json=TEXTS)
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")
