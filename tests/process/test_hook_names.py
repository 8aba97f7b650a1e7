"""Reports of wrong places, over HTTP: what an SAE reads at a hook is what the library it was trained with has there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.engine.hooknames.shaped import HIDDEN, IDS, shaped
from tests.engine.test_hook_names import GOLDEN, folder_of
from tests.engine.tiny import tiny_tokenizer
from tests.process.harness import Process

PLACES: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "llama": [
        ("hook_mlp_in", "hooked", {"kind": "mlp_in", "layer": 1, "before": "norm"}),
        ("ln2.hook_normalized", "hooked", {"kind": "mlp_in", "layer": 1, "before": "gain"}),
        ("attn.o.hook_in", "bridge", {"kind": "attn_z", "layer": 1}),
        ("attn.hook_out", "bridge", {"kind": "attn_out", "layer": 1}),
        ("hook_in", "bridge", {"kind": "resid_pre", "layer": 1}),
        ("hook_out", "bridge", {"kind": "resid_post", "layer": 1}),
    ],
    "gemma2": [
        ("mlp.hook_out", "bridge", {"kind": "mlp_out", "layer": 1, "before": "norm"}),
        ("hook_mlp_out", "hooked", {"kind": "mlp_out", "layer": 1}),
        ("ln2.hook_normalized", "hooked", {"kind": "mlp_in", "layer": 1, "before": "gain"}),
    ],
    "gemma3_text": [
        ("mlp.hook_out", "bridge", {"kind": "mlp_out", "layer": 1, "before": "norm"}),
        ("ln2.hook_normalized", "hooked", {"kind": "mlp_in", "layer": 1, "before": "gain"}),
    ],
}


@pytest.mark.parametrize("model_type", list(PLACES))
def test_an_sae_reads_what_its_library_has_at_the_hook(model_type: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shaped(model_type).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    with Process(tmp_path / "data", "--torch", "--import-root", str(tmp_path)) as process:
        process.client.timeout = httpx.Timeout(60)
        process.send("model", type="LoadModel", model=str(model), device="cpu")
        process.until_ready(100)

        def imported(name: str) -> str:
            folder = folder_of(tmp_path / f"{name}-sae", name, model_type, HIDDEN, folded=False)
            events = process.send(name, type="Import", path=str(folder))["events"]
            return str(events[0]["data"]["sae_id"])

        for name, variant, point in PLACES[model_type]:
            wanted = GOLDEN[2 if variant == "hooked" else 4][f"{variant}/{model_type}/{name}"]
            if wanted.shape[1] != HIDDEN:
                continue
            sae_id = imported(name)
            answer = process.client.post(f"/api/saes/{sae_id}/attach", json={"replace": True})
            assert answer.status_code == 200, answer.text
            assert answer.json()["hook_point"] == point
            body = {"token_ids": list(IDS), "sae_id": sae_id, "features": list(range(2 * HIDDEN))}
            told = process.client.post("/api/activations", json=body).json()["features"]
            acts = torch.zeros(len(IDS), 2 * HIDDEN)
            for at, row in enumerate(told):
                for each in row:
                    acts[at, each["feature"]] = each["activation"]
            torch.testing.assert_close(acts[:, :HIDDEN] - acts[:, HIDDEN:], wanted, rtol=1e-3, atol=2e-4)

        refused = imported("ln1.hook_normalized")
        answer = process.client.post(f"/api/saes/{refused}/attach", json={"replace": True})
        assert (answer.status_code, answer.json()["code"]) == (422, "sae_unsupported")
        assert "blocks.1.ln1.hook_normalized" in answer.json()["detail"]
