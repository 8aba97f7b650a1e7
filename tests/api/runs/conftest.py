"""What the tests of runs ask for, over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from tests.api.conftest import Running

TEXTS = [f"text number {number}" + " and more" * (number % 5) for number in range(150)]


class Groups(asyncio.Event):
    """A gate that lets so many groups through."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = asyncio.Semaphore(count)

    async def wait(self) -> Literal[True]:
        await self._left.acquire()
        return True


async def run(service: Running, kind: str = "evaluate", texts: Any = None, **spec: Any) -> str:
    """Ask for a run; its id."""
    asked = {"texts": {"texts": TEXTS} if texts is None else texts, "sae_id": service.sae_ids[0], **spec}
    answer = await service.client.post("/api/commands", json={"type": "Run", "kind": kind, "spec": asked})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def view(service: Running, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await service.client.get(f"/api/runs/{run_id}")).raise_for_status().json()
    return found


async def until(service: Running, run_id: str, *states: str, rows: int = 0) -> dict[str, Any]:
    """Wait until the run is in one of these states, and has so many rows."""
    while True:
        found = await view(service, run_id)
        if found["state"] in states and found["rows"] >= rows:
            return found
        assert found["state"] not in ("failed", "completed", "cancelled"), found
        await asyncio.sleep(0.01)


async def rows(service: Running, run_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = (await service.client.get(f"/api/runs/{run_id}/rows", params=query)).raise_for_status()
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]
