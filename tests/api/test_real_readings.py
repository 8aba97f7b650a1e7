"""Readings over HTTP on real models, next to transformers' own hidden states: the lens, contrast, activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.sae import load_sae
from tests.engine.model.test_tail import unembedded
from tests.engine.tiny import HIDDEN, save_tiny_model, save_tiny_sae
from tests.measuring.test_contrast import auroc, rate, youden

from .over_http import edit, kept, over_http

pytestmark = pytest.mark.anyio

PLEASED = [
    "I love this book", "What a lovely day", "The soup was delicious", "She smiled and thanked everyone",
    "We won the game at last", "My best friend is visiting", "The garden is full of flowers",
    "He laughed until he cried with joy", "It is the happiest day of my life", "The children are singing",
]  # fmt: skip
ANNOYED = [
    "I hate this book", "What an awful day", "The soup was disgusting", "She frowned and blamed everyone",
    "We lost the game again", "My worst enemy is visiting", "The garden is full of rubbish",
    "He shouted until he was hoarse with rage", "It is the saddest day of my life", "The children are crying",
]  # fmt: skip


class Plain:
    """transformers' model, and hooks of torch."""

    def __init__(self, folder: Path, blocks: str = "model.layers") -> None:
        self.network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.blocks = self.network.get_submodule(blocks)

    def streams(self, ids: Sequence[int], add: tuple[int, Tensor] | None = None) -> list[Tensor]:
        """[n, hidden] after each block; `add` [n, hidden] is added after one of them."""
        seen: list[Tensor] = []

        def hook(_module: Any, _inputs: Any, out: Any) -> Any:
            x = out if isinstance(out, Tensor) else out[0]
            if add is not None and add[0] == len(seen):
                x = x + add[1]
            seen.append(x[0].clone())
            return x if isinstance(out, Tensor) else (x, *out[1:])

        handles = [block.register_forward_hook(hook) for block in self.blocks]
        with torch.no_grad():
            self.network(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return seen

    def lens(self, x: Tensor, top: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            best = unembedded(self.network, x).log_softmax(-1).topk(top)
        return best.values, best.indices


def check_lens(told: dict[str, Any], plain: Plain, streams: Sequence[Tensor], top: int) -> None:
    for each in told["layers"]:
        values, ids = plain.lens(streams[each["layer"]], top)
        found = torch.tensor([[one["logprob"] for one in row] for row in each["positions"]])
        torch.testing.assert_close(found, values, rtol=1e-3, atol=2e-3)
        same = torch.tensor([[one["token_id"] for one in row] for row in each["positions"]]) == ids
        assert float(same.float().mean()) > 0.98, "but for near-ties"


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    told: dict[str, Any] = answer.json()
    return told


FAMILIES = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "granite": "model.layers"}


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_lens_of_each_layer(tmp_path: Path, family: str) -> None:
    scaled: dict[str, Any] = {"logits_scaling": 4.0} if family == "granite" else {}
    model = save_tiny_model(tmp_path / "model", family, **scaled)
    async with over_http(tmp_path / "data", model) as (client, _):
        told = await ask(client, "/api/lens", prompt="Hello there", top=4)
        plain = Plain(model, FAMILIES[family])
        assert [each["layer"] for each in told["layers"]] == [0, 1, 2]
        check_lens(told, plain, plain.streams(told["token_ids"]), 4)
        body = {"model": "default", "prompt": told["token_ids"], "max_tokens": 1, "logprobs": 4, "temperature": 0}
        text = await ask(client, "/v1/completions", **body)
        last = told["layers"][-1]["positions"][-1]
        best = text["choices"][0]["logprobs"]["top_logprobs"][0]
        assert [each["logprob"] for each in last] == pytest.approx(sorted(best.values(), reverse=True), abs=1e-4)


async def test_the_lens_under_an_intervention(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    async with over_http(tmp_path / "data", model) as (client, _):
        row = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
        sae_id = await kept(client, rows=[row.tolist()])
        own = {"interventions": [{"sae_id": sae_id, "steering": [edit(0, 4.0, "add")]}]}
        told = await ask(client, "/api/lens", prompt="Hello there", sae=own, top=3)
        plain = Plain(model)
        check_lens(told, plain, plain.streams(told["token_ids"], (1, 4.0 * row)), 3)
        bare = await ask(client, "/api/lens", prompt="Hello there", top=3)
        assert bare["layers"][0] == told["layers"][0], "below the intervention nothing changes"
        assert bare["layers"][1:] != told["layers"][1:]


def pooled(acts: Tensor, how: str) -> Tensor:
    return {"max": acts.amax(0), "mean": acts.mean(0), "last": acts[-1]}[how]


def counted(x: Tensor, special: Sequence[bool]) -> Tensor:
    """Without sinks and special tokens."""
    norms = x.norm(dim=-1)
    left = (norms > 5 * norms.median()) | torch.tensor(special)
    left[0] = True
    found: Tensor = ~left
    return found


@pytest.mark.parametrize("how", ["max", "mean", "last"])
async def test_contrast_equals_what_torch_makes_of_hidden_states(tmp_path: Path, how: str) -> None:
    model, sae_at = save_tiny_model(tmp_path / "model"), save_tiny_sae(tmp_path / "sae")
    async with over_http(tmp_path / "data", model) as (client, service):
        await service.attach(sae_at)
        chat = [{"role": "user", "content": "how lovely"}]
        texts: dict[str, list[Any]] = {"positive": [*PLEASED[:4], chat], "negative": ANNOYED[:5]}
        told = await ask(client, "/api/contrast", **texts, pooling=how, top=24)
        plain, sae = Plain(model), load_sae(sae_at)
        pools: dict[str, list[Tensor]] = {}
        active, tokens = torch.zeros(24), 0
        for name, some in texts.items():
            for text in some:
                read = await service.engine.tokenize(text)
                x = plain.streams(read.token_ids)[1]
                acts = sae.encode(x)[counted(x, read.special)]
                pools.setdefault(name, []).append(pooled(acts, how))
                active, tokens = active + (acts > 0).sum(0), tokens + len(acts)
        assert told["tokens"] == tokens
        for row in told["features"]:
            a, b = ([float(each[row["feature"]]) for each in pools[name]] for name in ("positive", "negative"))
            assert row["mean_a"] == pytest.approx(sum(a) / 5, abs=1e-4)
            assert row["difference"] == pytest.approx(sum(a) / 5 - sum(b) / 5, abs=1e-4)
            assert row["auroc"] == pytest.approx(auroc(a, b), abs=1e-6)
            assert row["threshold"] == pytest.approx(youden(a, b), abs=1e-4)
            assert row["density"] == pytest.approx(float(active[row["feature"]]) / tokens)
            assert row["frac_active_b"] == sum(each > 0 for each in b) / 5
        order = [-round(abs(row["auroc"] - 0.5), 9) for row in told["features"]]
        assert order == sorted(order)


async def test_raw_activations_are_the_hidden_states(tmp_path: Path) -> None:
    model, sae_at = save_tiny_model(tmp_path / "model"), save_tiny_sae(tmp_path / "sae")
    async with over_http(tmp_path / "data", model) as (client, service):
        await service.attach(sae_at)
        inputs = [{"prompt": "Hello"}, {"prompt": "there", "continuation": " you"}]
        headers = {"Accept": "application/vnd.safetensors"}
        answer = await client.post("/api/activations", json={"inputs": inputs, "raw": True}, headers=headers)
        found, plain = safetensors.torch.load(answer.content), Plain(model)
        told = await ask(client, "/api/activations", inputs=inputs, raw=True, top_k=24, exclude=[])
        for at, each in enumerate(told["results"]):
            x = plain.streams(each["token_ids"])[1]
            torch.testing.assert_close(found[f"raw.{at}"], x, rtol=1e-4, atol=1e-4)
            assert torch.tensor(each["raw"]).tolist() == found[f"raw.{at}"].tolist(), "JSON keeps every bit"
            acts = torch.zeros(len(x), 24)
            for row, features in zip(acts, each["features"], strict=True):
                for one in features:
                    row[one["feature"]] = one["activation"]
            torch.testing.assert_close(acts, load_sae(sae_at).encode(x), rtol=1e-4, atol=1e-4)


# — recipes, on the demo's model —


@pytest.mark.model
async def test_recipe_rank_the_features_of_ten_and_ten_sentences(
    tmp_path: Path, real_model: Path, demo_sae: Path
) -> None:
    async with over_http(tmp_path, real_model) as (client, service):
        await service.attach(demo_sae)
        # The recipe:
        body = {"positive": PLEASED, "negative": ANNOYED, "top": 10, "held_out": 0.3}
        told = (await client.post("/api/contrast", json=body)).json()
        best = [(row["feature"], row["auroc"], row["held_out"]["auroc"]) for row in told["features"]]
        # What it comes to, by hand:
        plain, sae = Plain(real_model), load_sae(demo_sae)
        sides = []
        for some in (PLEASED, ANNOYED):
            pools = []
            for text in some:
                read = await service.engine.tokenize(text)
                x = plain.streams(read.token_ids)[15]
                pools.append(sae.encode(x)[counted(x, read.special)].amax(0))
            sides.append(torch.stack(pools))
        for row, (feature, area, later) in zip(told["features"], best, strict=True):
            a, b = (side[:, feature].tolist() for side in sides)
            assert area == pytest.approx(auroc(a[:7], b[:7]), abs=0.021), "but for a near-tie"
            assert later == pytest.approx(auroc(a[7:], b[7:]), abs=0.12)
            assert row["held_out"]["true_positive_rate"] == pytest.approx(rate(a[7:], row["threshold"] - 1e-3))
        every = [auroc(sides[0][:7, n].tolist(), sides[1][:7, n].tolist()) for n in range(2304)]
        assert abs(best[0][1] - 0.5) == pytest.approx(max(abs(each - 0.5) for each in every), abs=0.021)


@pytest.mark.model
async def test_recipe_the_lens_layer_by_layer(tmp_path: Path, real_model: Path) -> None:
    async with over_http(tmp_path, real_model) as (client, _):
        # The recipe:
        body = {"prompt": "The capital of France is", "layers": [5, 20, 29], "top": 5}
        told = (await client.post("/api/lens", json=body)).json()
        shown = {layer["layer"]: layer["positions"][-1][0]["token"] for layer in told["layers"]}
        # What it comes to:
        plain = Plain(real_model)
        check_lens(told, plain, plain.streams(told["token_ids"]), 5)
        assert shown[29] == " Paris"
        assert shown[5] != " Paris"


@pytest.mark.model
async def test_recipe_patch_one_position(tmp_path: Path, real_model: Path) -> None:
    """The residual stream of another prompt in the place of one token's: a vector that is added there alone."""
    point = {"kind": "resid_post", "layer": 9}
    async with over_http(tmp_path, real_model) as (client, _):
        # The recipe:
        prompts = ["The capital of France is", "The capital of Japan is"]
        body = {"inputs": [{"prompt": each} for each in prompts], "raw": True, "hook_point": point}
        one, other = (await client.post("/api/activations", json=body)).json()["results"]
        (at,) = [n for n, pair in enumerate(zip(one["tokens"], other["tokens"], strict=True)) if pair[0] != pair[1]]
        difference = [b - a for a, b in zip(one["raw"][at], other["raw"][at], strict=True)]
        vector = {"name": "japan-for-france", "hook_point": point, "rows": [difference]}
        sae_id = (await client.post("/api/vectors", json=vector)).json()["sae_id"]
        await client.post(f"/api/saes/{sae_id}/attach")
        steering = [{"feature": 0, "strength": 1, "positions": {"tokens": [at]}}]
        own = {"interventions": [{"sae_id": sae_id, "steering": steering}]}
        told = (await client.post("/api/lens", json={"prompt": prompts[0], "layers": [29], "sae": own})).json()
        # What it comes to, by a plain hook:
        plain = Plain(real_model)
        add = torch.zeros(len(one["tokens"]), 576)
        add[at] = plain.streams(other["token_ids"])[9][at] - plain.streams(one["token_ids"])[9][at]
        check_lens(told, plain, plain.streams(one["token_ids"], (9, add)), 5)
        assert told["layers"][0]["positions"][-1][0]["token"] == " Tokyo"


@pytest.mark.model
async def test_recipe_an_own_vector_beside_a_random_one_of_equal_norm(tmp_path: Path, real_model: Path) -> None:
    point = {"kind": "resid_post", "layer": 15}
    async with over_http(tmp_path, real_model) as (client, _):
        # The recipe:
        texts = {"positive": PLEASED, "negative": ANNOYED}
        own = (await client.post("/api/directions", json={"name": "glad", "hook_point": point, **texts})).json()
        await client.post(f"/api/saes/{own['sae_id']}/attach")
        random = {"random_seed": 0, "norm_of": {"sae_id": own["sae_id"], "feature": 0}}
        chance = (await client.post("/api/directions", json={"name": "chance", "hook_point": point, **random})).json()
        await client.post(f"/api/saes/{chance['sae_id']}/attach")
        lenses = {}
        for sae_id in (own["sae_id"], chance["sae_id"]):
            sae = {"interventions": [{"sae_id": sae_id, "steering": [{"feature": 0, "strength": 2}]}]}
            body = {"prompt": "I think that this film is", "layers": [29], "sae": sae}
            lenses[sae_id] = (await client.post("/api/lens", json=body)).json()
        # What it comes to, by plain hooks; sinks are left out by default:
        plain = Plain(real_model)
        for sae_id, told in lenses.items():
            row = load_sae(tmp_path / "vectors" / sae_id).W_dec[0]
            add = (2 * row).repeat(len(told["tokens"]), 1)
            add[0] = 0
            check_lens(told, plain, plain.streams(told["token_ids"], (15, add)), 5)
        norms = [float(load_sae(tmp_path / "vectors" / each).W_dec[0].norm()) for each in lenses]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
