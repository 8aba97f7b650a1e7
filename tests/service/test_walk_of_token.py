"""A token on its way from the model to the client."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest

from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.scheduler import Scheduler
from sae_actor.hub import HuggingFaceHub
from tests.api.conftest import serving
from tests.engine.tiny import VOCABULARY, save_tiny_model, save_tiny_sae
from tests.walks import Walk, calling

pytestmark = pytest.mark.anyio

SIXTH = 5
BODY = {
    "model": "default",
    "prompt": "hello",
    "max_tokens": 12,
    "min_tokens": 12,
    "seed": 1,
    "stream": True,
}


class DiskHub(HuggingFaceHub):
    """The real hub; there is nothing to publish."""

    def publish(self, *_: Any) -> None: ...

    def place(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("begin", "most"), [("Scheduler.step", 28), ("_settle", 18)], ids=["from its step on", "from its logits on"]
)
async def test_a_token_enters_few_modules(
    begin: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pytest -s` shows them. Engine and hub are the service's own; the text is steered and streamed."""
    received = threading.Semaphore(1)
    step = Scheduler.step

    def step_by_step(scheduler: Scheduler) -> None:
        """A step begins when the client has the token of the one before."""
        received.acquire(timeout=10)
        step(scheduler)

    monkeypatch.setattr(Scheduler, "step", step_by_step)
    model, sae = save_tiny_model(tmp_path / "model"), save_tiny_sae(tmp_path / "saes" / "tiny")
    calls = itertools.count()
    walk = Walk(
        calling("sae_actor.engine.decoding.scheduler", begin, lambda _: next(calls) == SIXTH),
        lambda frame: (
            frame.f_globals["__name__"].startswith("sae_actor.api.guard.")
            and b'"text"' in frame.f_locals.get("message", {}).get("body", b"")
        ),
    )
    hub: Any = DiskHub(tmp_path / "hub", import_roots=[sae.parent])
    with walk:
        engine: Any = TorchEngine(EngineSettings(threads=1))
        engine.hidden_size = 32
        async with serving(engine=engine, hub=hub) as service:
            await service.command("LoadModel", model=str(model))
            imported = await service.command("Import", path=str(sae))
            sae_id = imported["events"][0]["data"]["sae_id"]
            await service.command("Attach", sae_id=sae_id)
            await service.command("Steer", sae_id=sae_id, features=[{"feature": 3, "strength": 30.0}])
            letters = (await engine.tokenize(ascii_letters)).token_ids
            # No other token may come: each is a character, and sent at once.
            body = {**BODY, "stop_token_ids": sorted({*range(VOCABULARY)} - {*letters})}
            async with service.client.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line:
                        received.release()
        await hub.close()
    print(f"\n{walk}")
    assert len(walk.modules) <= most
