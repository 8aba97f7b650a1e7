"""Runs on a real model: a contrast is the route's; a sweep's texts are those of the routes, its numbers those of scores
and readings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.tiny import save_tiny_model, save_tiny_sae

from .over_http import over_http
from .test_real_readings import ANNOYED, PLEASED

pytestmark = pytest.mark.anyio

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sae(tmp_path_factory.mktemp("runs") / "sae")


async def done(client: httpx.AsyncClient, kind: str, **spec: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask for a run, and wait for it: the run, and its rows."""
    answer = await client.post("/api/commands", json={"type": "Run", "kind": kind, "spec": spec})
    assert answer.status_code == 202, answer.text
    path = f"/api/runs/{answer.json()['run_id']}"
    while (run := (await client.get(path)).raise_for_status().json())["state"] in ("running", "waiting"):
        await asyncio.sleep(0.02)
    assert run["state"] == "completed", run
    rows = (await client.get(f"{path}/rows")).raise_for_status().text
    return run, [json.loads(line) for line in rows.splitlines()]


async def test_a_contrast_is_the_route_s(tmp_path: Path, model: Path, sae: Path) -> None:
    async with over_http(tmp_path / "log", model) as (client, recorder):
        await recorder.attach(sae)
        for more in ({}, {"pooling": "mean", "held_out": 0.3}, {"pooling": "last", "exclude": ["special", "template"]}):
            asked = {"positive": [*PLEASED, CHAT], "negative": ANNOYED, "top": 24, **more}
            told = (await client.post("/api/contrast", json=asked)).raise_for_status().json()
            run, rows = await done(client, "contrast", **asked)
            assert (run["summary"]["tokens"], run["summary"]["excluded"]) == (told["tokens"], told["excluded"])
            known = {each["feature"]: each for each in told["features"]}
            assert {row["feature"] for row in rows} == set(known)
            for row in rows:
                for name in ("mean_a", "mean_b", "difference", "auroc", "threshold", "density", "frac_active_a"):
                    assert row[name] == pytest.approx(known[row["feature"]][name], abs=1e-4), name


@pytest.mark.parametrize("positions", ["all", "generated", {"role": "user"}])
async def test_a_sweep_is_what_the_routes_give(tmp_path: Path, model: Path, sae: Path, positions: Any) -> None:
    prompts: list[Any] = ["Hello", "hello world, again", CHAT] if isinstance(positions, str) else [CHAT]
    async with over_http(tmp_path / "log", model) as (client, recorder):
        sae_id = await recorder.attach(sae)
        edit = {"feature": 3, "strength": 6.0, "positions": positions}
        whole = [{"sae_id": sae_id, "mode": "reconstruct"}]
        owns: dict[str, Any] = {
            "bare": {"baseline": True}, "steered": {"steering": [edit]}, "whole": {"interventions": whole},
        }  # fmt: skip
        variants = [{"name": name, "sae": own} for name, own in owns.items()]
        run, rows = await done(
            client, "sweep", prompts=prompts, variants=variants, seeds=[3, 4], max_tokens=9, temperature=1.0,
            features=[3, 5], continuations=[" yes", "no"],
        )  # fmt: skip
        assert len(rows) == run["total"] == len(prompts) * 6
        read = [await _agrees(client, row, prompts[row["prompt"]], owns[row["variant"]]) for row in rows]
        assert sum(read) >= len(rows) // 3


async def _agrees(client: httpx.AsyncClient, row: dict[str, Any], prompt: Any, own: dict[str, Any]) -> bool:
    """Returns whether a reading can say what its activations are."""
    body = {"model": "default", "max_tokens": 9, "temperature": 1.0, "seed": row["seed"], "sae": own}
    chat = isinstance(prompt, list)
    asked = {"messages": prompt} if chat else {"prompt": prompt}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    told = (await client.post(path, json={**body, **asked})).raise_for_status().json()
    choice = told["choices"][0]
    assert row["text"] == (choice["message"]["content"] if chat else choice["text"])
    assert row["finish_reason"] == choice["finish_reason"]
    for name, value in told["sae"]["receipt"].items():
        assert row["receipt"][name] == pytest.approx(value, rel=1e-4), name
    recorded = (await client.get(f"/api/generations/{row['generation_id']}")).raise_for_status().json()
    ids = recorded["output_token_ids"]
    bare = {"name": "bare", "sae": {"baseline": True}}
    score = await client.post("/api/score", json={"inputs": [{**asked, "continuation": ids}], "variants": [bare]})
    assert row["ce_unsteered"] == pytest.approx(score.json()["results"][0]["ce"], abs=1e-4)
    inputs = [{**asked, "continuation": text} for text in (" yes", "no")]
    score = await client.post("/api/score", json={"inputs": inputs, "variants": [{"name": "own", "sae": own}]})
    sums = [each["sum_logprob"] for each in score.json()["results"]]
    assert row["continuation_logprobs"] == pytest.approx(sums, abs=1e-3)
    if "steering" in own and own["steering"][0]["positions"] != "all":
        return False  # a reading has no generated positions, and no roles
    read = await client.post("/api/activations", json={
        "token_ids": [*recorded["prompt_token_ids"], *ids], "features": [3, 5], "sae": own,
    })  # fmt: skip
    found, at = read.raise_for_status().json(), len(recorded["prompt_token_ids"])
    if found["is_sink"][1:at] != [False] * (at - 1) or any(found["is_sink"][at:]):
        return False  # the reading takes all of it for the prompt, by whose median sinks are told
    for number, each in enumerate(row["activations"]):
        values = [token[number]["activation"] for token in found["features"][at:]]
        assert each["activation"] == pytest.approx(sum(values) / len(values), abs=1e-4)
    return True
