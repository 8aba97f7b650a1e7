"""`weights_files` beside `weights_sha256` in records, events, receipts and explanations."""

from __future__ import annotations

import pytest

from sae_actor.cli.render.explanation import explanation

from .conftest import Running

pytestmark = pytest.mark.anyio

ASK = {"model": "default", "prompt": "Once", "max_tokens": 3, "temperature": 0}


async def test_everywhere_the_file_that_sha256sum_can_check(service: Running) -> None:
    sae_id = await service.ready()
    record = (await service.client.get(f"/api/saes/{sae_id}")).json()
    (weights,) = [file for file in record["files"] if file["path"].endswith(".safetensors")]
    expected = [{"path": weights["path"], "sha256": weights["sha256"]}]
    assert record["weights_files"] == expected
    assert record["weights_sha256"] == weights["sha256"]
    data = {event["type"]: event["data"] for event in await service.events()}
    for type_ in ("DownloadCompleted", "SaeAttached"):
        assert (data[type_]["weights_files"], data[type_]["weights_sha256"]) == (expected, weights["sha256"])
    answer = (await service.client.post("/v1/completions", json=ASK)).json()
    (applied,) = answer["sae"]["interventions"]
    assert (applied["weights_files"], applied["weights_sha256"]) == (expected, weights["sha256"])
    own = {**ASK, "sae": {"interventions": [{"sae_id": sae_id, "mode": "reconstruct"}]}}
    (applied,) = (await service.client.post("/v1/completions", json=own)).json()["sae"]["interventions"]
    assert applied["weights_files"] == expected
    view = (await service.client.get(f"/api/generations/{answer['id']}")).json()
    (explained,) = view["intervention"]
    assert explained["weights_files"] == expected
    assert view["digest"]["agrees"]
    log = {"ok": True, "events": 1, "head": {"position": 1, "hash": ""}}
    assert (
        f"    file     {weights['path']} sha256 {weights['sha256']}" in explanation({**view, "log": log}).splitlines()
    )
    baseline = {**ASK, "sae": {"baseline": True}}
    assert (await service.client.post("/v1/completions", json=baseline)).json()["sae"]["interventions"] == []
