"""Recipes of runs on the demo's model, each beside the same worked out plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_actor.sae import load_sae
from tests.api.over_http import over_http
from tests.engine.measuring.plain import evaluated

pytestmark = [pytest.mark.anyio, pytest.mark.model]

FEATURE = 74
"""Books and reading."""
MINE = (
    "I read a good book about the sea last week.",
    "The weather is cold, and nobody goes out.",
    "She prints books and sells them to readers in the library.",
    "My brother repairs old cars in his garage.",
    "A letter came today; I have not read it yet.",
)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(MINE), "utf-8")
    return path


async def test_loss_and_l0_of_a_file_of_mine(tmp_path: Path, mine: Path, real_model: Path, demo_sae: Path) -> None:
    async with over_http(tmp_path / "data", real_model) as (client, service):
        sae_id = await service.attach(demo_sae)
        # The recipe:
        plain_text, wait = {"content-type": "text/plain"}, {"prefer": "wait=60"}
        texts = (await client.put("/api/texts", content=mine.read_bytes(), headers=plain_text)).json()  # noqa: ASYNC240
        spec = {"sae_id": sae_id, "texts": {"texts_id": texts["texts_id"]}}
        body = {"type": "Run", "kind": "evaluate", "spec": spec}
        run = (await client.post("/api/commands", json=body, headers=wait)).json()
        told = (await client.get(f"/api/runs/{run['run_id']}")).json()["summary"]
        loss, with_sae, l0 = told["ce_loss_without_sae"], told["ce_loss_with_sae"], told["l0"]
    # What it comes to:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    ids = [tokenizer(text)["input_ids"] for text in MINE]
    plain = evaluated(real_model, demo_sae, ids, lambda network: network.model.layers[15])
    assert (loss, with_sae) == pytest.approx((plain["ce_loss_without_sae"], plain["ce_loss_with_sae"]), rel=1e-4)
    assert l0 == pytest.approx(plain["l0"], abs=0.03), "but for a near-tie"
    assert told["explained_variance"] == pytest.approx(plain["explained_variance"], rel=1e-3)


async def test_where_a_feature_fires_in_my_file(tmp_path: Path, mine: Path, real_model: Path, demo_sae: Path) -> None:
    async with over_http(tmp_path, real_model) as (client, service):
        sae_id = await service.attach(demo_sae)
        # The recipe; the folder of the file is one of `[data] texts_roots`:
        spec = {"sae_id": sae_id, "texts": {"file": mine.name}, "context": [3, 2]}
        body = {"type": "Run", "kind": "profile", "spec": spec}
        await client.post("/api/commands", json=body, headers={"prefer": "wait=60"})
        feature = (await client.get(f"/api/saes/{sae_id}/features/{FEATURE}")).json()["profile"]
        fires = [(each["text_index"], each["position"], "".join(each["tokens"])) for each in feature["examples"]]
    # What it comes to:
    expected = strongest(real_model, demo_sae)
    assert [(text, position) for text, position, _ in fires] == [(text, at) for _, text, at in expected]
    assert feature["max"] == pytest.approx(expected[0][0], rel=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    for text, position, shown in fires:
        ids = tokenizer(MINE[text])["input_ids"]
        assert shown == tokenizer.decode(ids[max(0, position - 3) : position + 3])
    assert {text for text, _, _ in fires} >= {0, 2}, "the texts about books"


def strongest(model: Path, sae: Path) -> list[tuple[float, int, int]]:
    """Of each text in which the feature fires the strongest position: activation, text, position."""
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer, encoder = AutoTokenizer.from_pretrained(model), load_sae(str(sae))
    found = []
    for number, text in enumerate(MINE):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            x = network(ids, output_hidden_states=True).hidden_states[16][0]
            acts = encoder.encode(x)[:, FEATURE]
        norms = x.norm(dim=-1)
        acts[norms > 5 * norms.median()] = 0
        acts[0] = 0
        best = int(acts.argmax())
        if acts[best] > 0:
            found.append((float(acts[best]), number, best))
    return sorted(found, key=lambda each: -each[0])
