"""Labels as tests import, search and export them."""

from __future__ import annotations

import json
from typing import Any

from ..conftest import Running

NDJSON = {"content-type": "application/x-ndjson"}
OURS = ({"feature": 3, "label": "the sea"}, {"feature": 5, "label": "Ships and harbours", "source": "me"})
NEURONPEDIA = (
    {"modelId": "tiny", "layer": "1-res-32", "index": "7", "description": "an older word", "typeName": "oai",
     "createdAt": "2024-01-01T00:00:00Z"},
    {"modelId": "tiny", "layer": "1-res-32", "index": "7", "description": "storms at night", "typeName": "oai",
     "createdAt": "2025-01-01T00:00:00Z"},
    {"modelId": "tiny", "layer": "1-res-32", "index": "7", "maxActApprox": 12.5, "frac_nonzero": 0.25,
     "pos_str": [" gale"], "pos_values": [1.5], "neg_str": ["x"], "neg_values": [-1.0], "hookName": "blocks.1.hook_x"},
    {"modelId": "tiny", "layer": "1-res-32", "index": "8", "tokens": ["a", " wave", "s"], "values": [0.0, 9.0, 2.0],
     "maxValue": 9.0, "maxValueTokenIndex": 1, "minValue": 0.0, "dataSource": "pile"},
)  # fmt: skip


def lines(*given: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in given)


async def put(service: Running, sae_id: str, body: bytes, status: int = 200, **query: str) -> dict[str, Any]:
    answer = await service.client.put(f"/api/saes/{sae_id}/labels", content=body, headers=NDJSON, params=query)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def search(service: Running, sae_id: str, **query: Any) -> dict[str, Any]:
    answer = await service.client.get(f"/api/saes/{sae_id}/features", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def numbers(service: Running, sae_id: str, **query: Any) -> list[int]:
    return [each["feature"] for each in (await search(service, sae_id, **query))["features"]]


async def exported(service: Running, sae_id: str, **query: str) -> bytes:
    answer = await service.client.get(f"/api/saes/{sae_id}/labels", params=query)
    assert answer.status_code == 200, answer.text
    return answer.content
