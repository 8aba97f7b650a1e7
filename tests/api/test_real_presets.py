"""Presets on a real model: two plain clients, two model names, one batch; no answer of `/v1` tells where files lie."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.making import Recorder

from .over_http import over_http

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
EDITS = {"calm": {"feature": 3, "strength": 30.0}, "bold": {"feature": 7, "strength": -30.0}}


@asynccontextmanager
async def with_presets(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Recorder]]:
    """Over a model in the folder `a-model`."""
    async with over_http(folder / "log", save_tiny_model(folder / "a-model")) as served:
        yield served


async def answered(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json={**ASK, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def plain(client: httpx.AsyncClient) -> AsyncOpenAI:
    """An OpenAI client as it comes."""
    return AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)  # type: ignore[arg-type]  # httpx by another name


async def together(service: Recorder, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """The answers to requests whose first step waits until all of them are admitted."""
    go = threading.Event()
    waiting = asyncio.create_task(service.engine._device.run(go.wait, "waiting for the others"))
    asked = [asyncio.create_task(call) for call in calls]
    try:
        while len(service.actor.state.generations) < len(calls):
            await asyncio.wait(asked, timeout=0.01)
    finally:
        go.set()
    await waiting
    return await asyncio.gather(*asked)


def rounded(receipt: dict[str, Any]) -> dict[str, Any]:
    """Batches round sums otherwise."""
    return {**receipt, "mean_relative_norm": pytest.approx(receipt["mean_relative_norm"], rel=1e-4)}


@pytest.mark.parametrize("model", ["default", "a-model"])
async def test_two_plain_clients_share_a_batch_and_each_has_its_own_steering(tmp_path: Path, model: str) -> None:
    """Two texts of the same edits by `extra_body`, alone, are what they get together by two names of the model."""
    sae = save_tiny_sae(tmp_path / "tiny-sae")
    async with with_presets(tmp_path) as (client, service):
        sae_id = await service.attach(sae)
        for name, edit in EDITS.items():
            own = {"sae_id": sae_id, "steering": [edit]}
            command = {"type": "SavePreset", "name": name, "interventions": [own]}
            sent = await client.post("/api/commands", json=command)
            assert sent.status_code == 202, sent.text
        bare = await answered(client, sae={"baseline": True})
        alone = {
            name: await plain(client).completions.create(
                model="default", **ASK, extra_body={"sae": {"steering": [edit]}}
            )
            for name, edit in EDITS.items()
        }
        listed = [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
        assert listed == ["a-model", "a-model@bold", "a-model@calm"]

        both = await together(
            service, *(plain(client).completions.create(model=f"{model}@{name}", **ASK) for name in EDITS)
        )
        for name, got in zip(EDITS, both, strict=True):
            same = alone[name]
            assert got.model_extra is not None
            assert same.model_extra is not None
            own, expected = got.model_extra["sae"], same.model_extra["sae"]
            assert got.choices[0].text == same.choices[0].text != bare["choices"][0]["text"]
            assert own["batch"] == [2, 2]
            assert expected["batch"] == [1, 1]
            assert own["preset"]["name"] == name
            assert own["interventions"] == expected["interventions"]
            assert own["intervention_sha256"] == expected["intervention_sha256"]
            assert own["receipt"] == rounded(expected["receipt"])
            assert own["receipt"]["tokens_edited"] == own["receipt"]["tokens_prompt"] + 24 - 2
        assert both[0].choices[0].text != both[1].choices[0].text


async def test_no_answer_of_v1_tells_where_the_model_lies(tmp_path: Path) -> None:
    async with with_presets(tmp_path) as (client, service):
        seen = [
            await client.post("/v1/completions", json={**ASK, "model": str(tmp_path / "a-model")}),
            await client.post("/v1/completions", json={**ASK, "model": "gpt-5"}),
            await client.get("/v1/models"),
        ]
        broken = {"type": "LoadModel", "model": str(tmp_path / "log")}
        await client.post("/api/commands", json=broken, headers={"Prefer": "wait=30"})
        assert service.actor.state.model is not None
        assert service.actor.state.model.status == "error"
        seen.append(await client.post("/v1/completions", json=ASK))
        assert [answer.status_code for answer in seen] == [200, 404, 200, 409]
        assert [answer.text for answer in seen if str(tmp_path) in answer.text] == []
        assert seen[0].json()["model"] == "a-model"
