"""An Attach on its way from its route to the frame of its event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_actor.eventlog import SqliteLog
from sae_actor.hub import HuggingFaceHub
from tests.api.conftest import serving
from tests.fakes.engine import FakeEngine
from tests.walks import Walk, calling

pytestmark = pytest.mark.anyio

SAE = Path(__file__).resolve().parents[2] / "sae_actor" / "demo" / "smollm2-135m-layer15"
MOST_MODULES = 35


class DiskHub(HuggingFaceHub):
    """The real hub; there is nothing to publish."""

    def publish(self, *_: Any) -> None: ...

    def place(self, *_: Any) -> None: ...


async def test_an_attach_enters_few_modules(tmp_path: Path) -> None:
    """`pytest -s` shows them. The log and the hub are the service's own, the engine is the one without torch."""
    walk = Walk(
        calling("sae_actor.api.routes.saes", "attach"),
        calling(
            "sae_actor.subscriptions.broadcast",
            "Broadcast._frame",
            lambda frame: frame.f_locals["event"].type == "SaeAttached",
        ),
        aside=frozenset({"sae_actor.api.guard.concurrency"}),  # it counts the requests of a turn of the loop
    )
    hub: Any = DiskHub(tmp_path / "hub", import_roots=[SAE.parent])
    engine = FakeEngine(num_layers=30, hidden_size=576)
    with walk:
        log: Any = await SqliteLog.open(tmp_path)
        async with serving(log, engine=engine, hub=hub) as service:
            await service.command("LoadModel", model="tiny")
            imported = await service.command("Import", path=str(SAE))
            sae_id = imported["events"][0]["data"]["sae_id"]
            attached = await service.client.post(f"/api/saes/{sae_id}/attach", json={})
            assert attached.json()["status"] == "attached"
        await hub.close()
        await log.close()
    print(f"\n{walk}")
    assert len(walk.modules) <= MOST_MODULES
