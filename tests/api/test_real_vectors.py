"""Vectors over HTTP on a real model: equal to a plain hook of torch, alone and together, back after a restart, run
again from the log."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.api import Context, create_app
from sae_actor.cli import main
from sae_actor.features import Features
from sae_actor.runs import RunFolder, Runs
from sae_actor.sae import load_sae
from tests.engine.tiny import HIDDEN, save_tiny_model, save_tiny_sae
from tests.formats.vector_files import write_gguf, write_steering
from tests.reproducing.making import Recorder, recording

from .conforming import CAPABILITIES

pytestmark = pytest.mark.anyio

IDS = [72, 101, 108, 108, 111]
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(2, HIDDEN, generator=GENERATOR)
TOKENS = 5
ASK = {"model": "default", "prompt": IDS, "temperature": 1, "ignore_eos": True}

Edits = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("vectors") / "model")


@asynccontextmanager
async def over_http(folder: Path, model: Path, **more: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Recorder]]:
    """`more`: as `recording` takes it."""
    async with recording(folder, model, max_attachments=4, **more) as service:
        actor = service.actor
        features = Features(folder, service.hub, lambda: actor.state, 2**20)
        runs = Runs(RunFolder(folder / "runs"), service.engine, lambda: actor.state, lambda _: None)
        runs.use(service.texts, features.labels)
        service.performer.run = runs.perform
        runs.profiled, features.profile_rows = features.profiled, runs.all_rows
        context = Context(
            actor=actor,
            generations=service.texts,
            log=service.log,
            hub=service.hub,
            engine=service.engine,
            runs=runs,
            texts_roots=(folder,),
            features=features,
            capabilities=lambda: CAPABILITIES,
        )
        transport = httpx.ASGITransport(create_app(context))  # type: ignore[arg-type]  # the same protocol
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield client, service
        features.close()


async def kept(client: httpx.AsyncClient, *, layer: int = 1, **body: Any) -> str:
    point = {"kind": "resid_post", "layer": layer}
    answer = await client.post("/api/vectors", json={"name": "own", "hook_point": point, "rows": ROWS.tolist(), **body})
    assert answer.status_code == 201, answer.text
    sae_id: str = answer.json()["sae_id"]
    assert (await client.post(f"/api/saes/{sae_id}/attach")).status_code == 200
    return sae_id


def edit(feature: int, strength: float, method: str, **more: Any) -> dict[str, Any]:
    return {"feature": feature, "strength": strength, "method": method, "exclude": [], **more}


async def scored(client: httpx.AsyncClient, *own: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    """Log probabilities of a greedy text under these interventions, and what is said of them."""
    body = {
        "model": "default",
        "prompt": IDS,
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": 1,
        "ignore_eos": True,
    }
    answer = await client.post("/v1/completions", json={**body, "sae": {"interventions": list(own)}})
    assert answer.status_code == 200, answer.text
    view = answer.json()
    return view["choices"][0]["logprobs"]["token_logprobs"], view["sae"]


def plain(model: Path, hooks: dict[int, Edits]) -> list[float]:
    """The same by hooks of torch alone, without a cache."""
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def hook(edits: Edits) -> Callable[..., Any]:
        def run(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edits(output[0]), *output[1:])
            return edits(output)

        return run

    for layer, edits in hooks.items():
        network.model.layers[layer].register_forward_hook(hook(edits))
    ids, found = list(IDS), []
    with torch.no_grad():
        for _ in range(TOKENS):
            scores = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(scores.argmax()))
            found.append(float(scores.max()))
    return found


def along(x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    v = row / row.norm()
    return (x @ v)[..., None], v


def added(row: Tensor, strength: float) -> Edits:
    return lambda x: x + strength * row


def projected(row: Tensor, strength: float) -> Edits:
    def edits(x: Tensor) -> Tensor:
        length, v = along(x, row)
        return x + (strength - 1) * length * v

    return edits


def set_along(row: Tensor, strength: float) -> Edits:
    def edits(x: Tensor) -> Tensor:
        length, v = along(x, row)
        return x + (strength - length) * v

    return edits


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


async def test_the_difference_of_means_equals_torch(tmp_path: Path, model: Path) -> None:
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
