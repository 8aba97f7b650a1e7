"""Directions made of texts by a real model: the difference of means as torch has it, beside a random one."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.sae import load_sae
from tests.engine.tiny import save_tiny_model

from .over_http import IDS, added, edit, over_http, plain, scored

pytestmark = pytest.mark.anyio

ASK = {"model": "default", "prompt": IDS, "temperature": 1, "ignore_eos": True}


async def test_the_difference_of_means_equals_torch(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    texts = {"positive": ["I love this book", "what a lovely day"], "negative": ["I hate it", "awful weather", "no"]}
    body = {"name": "warm", "hook_point": {"kind": "resid_post", "layer": 1}, **texts}
    async with over_http(tmp_path, model) as (client, service):
        answer = await client.post("/api/directions", json=body)
        assert answer.status_code == 201, answer.text
        network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        seen: list[Tensor] = []
        network.model.layers[1].register_forward_hook(lambda _m, _i, out: seen.append(_first(out)))
        means, norms = {}, []
        for name, some in texts.items():
            pooled = []
            for text in some:
                read = await service.engine.tokenize(text)
                with torch.no_grad():
                    network(torch.tensor([read.token_ids]))
                x = seen.pop()[0]
                length = x.norm(dim=-1)
                left = (length > 5 * length.median()) | torch.tensor(read.special)
                left[0] = True
                pooled.append(x[~left].mean(0))
                norms += length[~left].tolist()
            means[name] = torch.stack(pooled).mean(0)
        sae = answer.json()
        row = load_sae(tmp_path / "vectors" / sae["sae_id"]).W_dec[0]
        torch.testing.assert_close(row, means["positive"] - means["negative"], rtol=1e-4, atol=1e-4)
        assert sae["median_norm"] == pytest.approx(statistics.median(norms), rel=1e-4)
        again = await client.post("/api/directions", json=body)
        assert (again.status_code, again.json()["sae_id"]) == (200, sae["sae_id"])
        # Beside a random one of equal norm, and with the unit that the texts' median gives.
        await client.post(f"/api/saes/{sae['sae_id']}/attach")
        beside = {"name": "chance", "hook_point": body["hook_point"], "random_seed": 1}
        of = {"norm_of": {"sae_id": sae["sae_id"], "feature": 0}}
        chance = (await client.post("/api/directions", json={**beside, **of})).json()
        other = load_sae(tmp_path / "vectors" / chance["sae_id"]).W_dec[0]
        assert float(other.norm()) == pytest.approx(float(row.norm()), rel=1e-5)
        assert abs(float(other @ row)) < 0.9 * float(row.norm()) ** 2
        await client.post(f"/api/saes/{chance['sae_id']}/attach")
        edits = [edit(0, 0.5, "add", unit="norm")]
        got, _ = await scored(client, {"sae_id": sae["sae_id"], "steering": edits})
        median = statistics.median(norms)
        assert got == pytest.approx(plain(model, {1: added(row / row.norm(), 0.5 * median)}), abs=5e-4)
        got, _ = await scored(client, {"sae_id": chance["sae_id"], "steering": [edit(0, 2.0, "add")]})
        assert got == pytest.approx(plain(model, {1: added(other, 2.0)}), abs=2e-4)


@pytest.mark.model
async def test_a_direction_beside_a_random_one_of_equal_norm(tmp_path: Path, real_model: Path) -> None:
    at = {"hook_point": {"kind": "resid_post", "layer": 15}}
    texts = {
        "positive": ["I love this book", "What a lovely day"],
        "negative": ["I hate this book", "What an awful day"],
    }
    async with over_http(tmp_path, real_model) as (client, _):
        # Among other texts too: each of its own runs alone, so that not a bit of it differs.
        others = [client.post("/v1/completions", json={**ASK, "max_tokens": 24, "seed": n}) for n in range(4)]
        beside, *_ = await asyncio.gather(client.post("/api/directions", json={"name": "warm", **at, **texts}), *others)
        warm = beside.json()["sae_id"]
        again = await client.post("/api/directions", json={"name": "warm", **at, **texts})
        assert (again.status_code, again.json()["sae_id"]) == (200, warm)
        await client.post(f"/api/saes/{warm}/attach")
        of = {"random_seed": 0, "norm_of": {"sae_id": warm, "feature": 0}}
        chance = (await client.post("/api/directions", json={"name": "chance", **at, **of})).json()["sae_id"]
        await client.post(f"/api/saes/{chance}/attach")
        rows = [load_sae(tmp_path / "vectors" / sae_id).W_dec[0] for sae_id in (warm, chance)]
        assert float(rows[1].norm()) == pytest.approx(float(rows[0].norm()), rel=1e-5)
        for sae_id, row in zip((warm, chance), rows, strict=True):
            got, _said = await scored(client, {"sae_id": sae_id, "steering": [edit(0, 3.0, "add")]})
            assert got == pytest.approx(plain(real_model, {15: added(row, 3.0)}), abs=2e-3)


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
