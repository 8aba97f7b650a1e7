"""A whole service with a real model over HTTP, and the same by hooks of torch alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.api import Context, create_app
from sae_actor.eventlog.index import Finder
from sae_actor.features import Features
from sae_actor.runs import RunFolder, Runs
from tests.engine.tiny import HIDDEN
from tests.reproducing.making import Recorder, recording

from .conforming import CAPABILITIES

IDS = [72, 101, 108, 108, 111]
ROWS = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(0))
TOKENS = 5

Edits = Callable[[Tensor], Tensor]


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
            finder=Finder.without_index(service.log),
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
