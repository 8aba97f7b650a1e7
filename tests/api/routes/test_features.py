"""One feature as a resource."""

from __future__ import annotations

import pytest

from ..conftest import Running

pytestmark = pytest.mark.anyio


async def test_of_an_attached_sae(service: Running) -> None:
    sae_id = await service.ready()
    service.engine.maxima = {3: 40.0}
    told = (await service.client.get(f"/api/saes/{sae_id}/features/3")).json()
    assert (told["sae_id"], told["feature"], told["decoder_norm"], told["bias"]) == (sae_id, 3, 1.0, 0.0)
    assert told["threshold"] is told["label"] is None
    assert told["max_activation"] == 40.0
    assert told["nearest"][0] == {"feature": 4, "cosine": 0.9}
    assert told["promoted"][0] == {"token_id": 97, "token": "a", "weight": 3.0}
    assert len(told["suppressed"]) == 10


async def test_refusals(service: Running) -> None:
    sae_id = await service.ready()
    for path, status, code in (
        (f"{sae_id}/features/32", 422, "feature_out_of_range"),
        (f"{sae_id}/features/-1", 400, "bad_request"),
        (f"{sae_id}/features/first", 400, "bad_request"),
        ("none/features/3", 404, "sae_not_found"),
    ):
        answer = await service.client.get(f"/api/saes/{path}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    await service.command("Detach", sae_id=sae_id)
    gone = await service.client.get(f"/api/saes/{sae_id}/features/3")
    assert (gone.status_code, gone.json()["code"]) == (409, "sae_not_attached")
