"""Vectors over HTTP on a real model: equal to a plain hook of torch, alone and together, back after a restart, run
again from the log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from torch import Tensor

from sae_actor.cli import main
from sae_actor.sae import load_sae
from tests.engine.tiny import HIDDEN, save_tiny_model, save_tiny_sae
from tests.formats.vector_files import write_gguf, write_steering

from .over_http import IDS, ROWS, TOKENS, Edits, added, edit, kept, over_http, plain, projected, scored, set_along

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("vectors") / "model")


CASES: dict[str, tuple[dict[str, Any], Edits]] = {
    "add": (edit(0, 2.0, "add"), added(ROWS[0], 2.0)),
    "add unit": (edit(1, 3.0, "add", unit="unit"), added(ROWS[1] / ROWS[1].norm(), 3.0)),
    "add norm": (edit(1, 0.5, "add", unit="norm"), added(ROWS[1] / ROWS[1].norm(), 0.5 * 8.0)),
    "ablate": (edit(0, 0.0, "project"), projected(ROWS[0], 0.0)),
    "project": (edit(1, 2.5, "project"), projected(ROWS[1], 2.5)),
    "set_projection": (edit(1, 4.0, "set_projection"), set_along(ROWS[1], 4.0)),
    "set_projection norm": (edit(0, 0.5, "set_projection", unit="norm"), set_along(ROWS[0], 4.0)),
}


async def test_each_method_and_unit_equals_a_plain_hook(tmp_path: Path, model: Path) -> None:
    async with over_http(tmp_path, model) as (client, _):
        sae_id = await kept(client, median_norm=8.0)
        bare = plain(model, {})
        for name, (own, edits) in CASES.items():
            got, said = await scored(client, {"sae_id": sae_id, "steering": [own]})
            want = plain(model, {1: edits})
            assert got == pytest.approx(want, abs=2e-4), name
            assert got != pytest.approx(bare, abs=2e-4), name
            assert said["interventions"][0]["sae_id"] == sae_id
            assert said["receipt"]["tokens_edited"] == len(IDS) + TOKENS - 1


async def test_units_without_their_statistic_are_refused(tmp_path: Path, model: Path) -> None:
    async with over_http(tmp_path, model) as (client, _):
        sae_id = await kept(client)
        for unit in ("norm", "max"):
            put = await client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit(0, 1.0, "add", unit=unit)]})
            assert (put.status_code, put.json()["code"]) == (422, "sae_unsupported"), unit


async def test_several_vectors_and_an_sae_together_and_in_a_batch(tmp_path: Path, model: Path) -> None:
    """Two vectors at one hook point both read the unedited x; one more lies a layer above, and an SAE at another."""
    third = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(5))
    sae = save_tiny_sae(tmp_path / "sae", hook="blocks.2.hook_resid_post")
    async with over_http(tmp_path / "data", model) as (client, service):
        one = await kept(client)
        other = await kept(client, name="other", rows=third.tolist())
        above = await kept(client, name="above", layer=0, rows=third.tolist())
        of_sae = await service.attach(sae)

        def both(x: Tensor) -> Tensor:
            return x + 2.0 * ROWS[0] + (projected(third[0], 0.5)(x) - x)

        interventions = [
            {"sae_id": one, "steering": [edit(0, 2.0, "add")]},
            {"sae_id": other, "steering": [edit(0, 0.5, "project")]},
            {"sae_id": above, "steering": [edit(0, -1.5, "add")]},
            {"sae_id": of_sae, "steering": [edit(3, 6.0, "add")]},
        ]
        row = load_sae(sae).W_dec[3]
        want = plain(model, {0: added(third[0], -1.5), 1: both, 2: added(row, 6.0)})
        got, said = await scored(client, *interventions)
        assert got == pytest.approx(want, abs=2e-4)
        assert [each["sae_id"] for each in said["interventions"]] == [one, other, above, of_sae]
        # In one batch: texts under different edits next to each other, each as it is alone.
        bodies: list[tuple[dict[str, Any], ...]] = [
            ({"sae_id": one, "steering": [own]},) for own, _ in CASES.values() if own.get("unit") != "norm"
        ]
        alone = [await scored(client, *each) for each in [*bodies, tuple(interventions)]]
        batched = await asyncio.gather(*(scored(client, *each) for each in [*bodies, tuple(interventions)]))
        for (single, _), (beside, _) in zip(alone, batched, strict=True):
            assert beside == pytest.approx(single, abs=1e-4)


@pytest.mark.parametrize("shape", ["gguf", "harness"])
async def test_an_imported_file_of_several_layers(tmp_path: Path, model: Path, shape: str) -> None:
    folder = tmp_path / "saes" / "happy"
    if shape == "gguf":
        write_gguf(folder / "happy.gguf", {1: ROWS[0], 2: ROWS[1]})
    else:
        write_steering(folder / "steer.pt", {"layers.1": ROWS[0], "layers.2": ROWS[1]})
    async with over_http(tmp_path / "data", model) as (client, _):
        wait = {"Prefer": "wait=60"}
        bare = await client.post("/api/commands", json={"type": "Import", "path": str(folder)}, headers=wait)
        problem = bare.json() if shape == "gguf" else bare.json()["error"]
        assert (problem["status"], problem["code"], problem["layers"]) == (422, "sae_ambiguous", [1, 2]), bare.text
        ids = []
        for layer in (1, 2):
            body = {"type": "Import", "path": str(folder), "layer": layer}
            done = (await client.post("/api/commands", json=body, headers=wait)).json()
            assert done["status"] == "completed", done
            ids.append(done["events"][0]["data"]["sae_id"])
        for sae_id, layer in zip(ids, (1, 2), strict=True):
            sae = (await client.get(f"/api/saes/{sae_id}")).json()
            assert (sae["architecture"], sae["layer"], sae["d_sae"]) == ("vectors", layer, 1)
            assert sae["hook_point"] == {"kind": "resid_post", "layer": layer}
            assert (await client.post(f"/api/saes/{sae_id}/attach")).status_code == 200
        own = [{"sae_id": sae_id, "steering": [edit(0, 2.0, "add")]} for sae_id in ids]
        got, _ = await scored(client, *own)
        assert got == pytest.approx(plain(model, {1: added(ROWS[0], 2.0), 2: added(ROWS[1], 2.0)}), abs=2e-4)


@pytest.mark.parametrize("shape", ["gguf", "harness"])
async def test_restored_explained_and_reproduced(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    folder = tmp_path / "happy"
    if shape == "gguf":
        write_gguf(folder / "happy.gguf", {0: ROWS[0], 2: ROWS[1]})
    else:
        write_steering(folder / "steer.pt", {"layers.0": ROWS[0], "layers.2": ROWS[1]})
    async with over_http(tmp_path / "data", model) as (client, service):
        one = await kept(client, names=["calm", "storm"])
        body = {"type": "Import", "path": str(folder), "layer": 2}
        done = await client.post("/api/commands", json=body, headers={"Prefer": "wait=60"})
        other = done.json()["events"][0]["data"]["sae_id"]
        await client.post(f"/api/saes/{other}/attach")
        own = [
            {"sae_id": one, "steering": [edit(0, 2.0, "add"), edit(1, 0.0, "project")]},
            {"sae_id": other, "steering": [edit(0, 4.0, "set_projection")]},
        ]
        before, said = await scored(client, *own)
        for sae_id, each in zip((one, other), own, strict=True):
            await client.put(f"/api/saes/{sae_id}/steering", json={"features": each["steering"]})
        shown = (await client.get(f"/api/saes/{one}/features/1")).json()
        assert shown["label"] == "storm"
        assert shown["decoder_norm"] == pytest.approx(float(ROWS[1].norm()))
    async with over_http(tmp_path / "data", model) as (client, service):
        while len(service.actor.state.attached) < 2:
            assert not service.actor.state.degraded
            await anyio.sleep(0.01)
        body = {"model": "default", "prompt": IDS, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
        again = (await client.post("/v1/completions", json={**body, "ignore_eos": True})).json()
        assert again["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(before, abs=1e-6)
        assert again["sae"]["intervention_sha256"] == said["intervention_sha256"]
        assert (await client.delete(f"/api/saes/{one}")).json()["code"] == "sae_in_use"
        await client.post(f"/api/saes/{one}/detach")
        kept_at = tmp_path / "data" / "vectors" / one / "vectors.safetensors"
        size = kept_at.stat().st_size
    for generation in (said["generation_id"], again["sae"]["generation_id"]):
        for_folder = [generation, "--data-dir", str(tmp_path / "data")]
        assert await anyio.to_thread.run_sync(main, ["log", "reproduce", *for_folder]) == 0
        assert f"{generation}: identical" in capsys.readouterr().out
        assert await anyio.to_thread.run_sync(main, ["log", "explain", *for_folder]) == 0
        told = capsys.readouterr().out
        assert one in told
        assert other in told
    async with over_http(tmp_path / "data", model) as (client, _):
        assert (await client.delete(f"/api/saes/{one}")).json()["freed_bytes"] == size
        assert not kept_at.parent.exists()
