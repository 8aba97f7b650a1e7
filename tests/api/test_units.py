"""Strengths in other units: what is decided, shown and logged is raw."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Running
from .text.test_routes import ASK

pytestmark = pytest.mark.anyio

IN_MAX = {"feature": 3, "strength": 0.5, "unit": "max"}


@pytest.fixture
async def measured(service: Running) -> Running:
    service.engine.maxima, service.engine.median_norm = {3: 40.0, 4: 1e9}, 7.0
    return service


async def test_steering_is_kept_raw(measured: Running) -> None:
    sae_id = await measured.ready()
    kept = (await measured.client.put(f"/api/saes/{sae_id}/steering", json={"features": [IN_MAX]})).json()["features"]
    assert [(edit["strength"], edit["unit"]) for edit in kept] == [(20.0, "raw")]
    changed = (await measured.events())[-1]
    assert changed["type"] == "SteeringChanged"
    assert [(edit["strength"], edit["unit"]) for edit in changed["data"]["features"]] == [(20.0, "raw")]
    steered = (await measured.client.post("/v1/completions", json=ASK)).json()
    raw = {"sae": {"steering": [{"feature": 3, "strength": 20}]}}
    assert (await measured.client.post("/v1/completions", json={**ASK, **raw})).json()["sae"][
        "intervention_sha256"
    ] == (steered["sae"]["intervention_sha256"])


@pytest.mark.parametrize("form", ["steering", "interventions"])
async def test_of_a_request(measured: Running, form: str) -> None:
    sae_id = await measured.ready()
    edits = [IN_MAX, {"feature": 5, "strength": 2, "unit": "norm"}, {"feature": 6, "strength": 2, "unit": "unit"}]
    own: dict[str, Any] = {"steering": edits}
    if form == "interventions":
        own = {"interventions": [{"sae_id": sae_id, "steering": edits}]}
    answer = (await measured.client.post("/v1/completions", json={**ASK, "sae": own})).json()["sae"]
    shown = [(edit["strength"], edit["unit"]) for edit in answer["interventions"][0]["steering"]]
    assert shown == [(20.0, "raw"), (14.0, "raw"), (2.0, "raw")]
    started = (await measured.events())[-2]["data"]["intervention"][0]["steering"]
    assert [edit["strength"] for edit in started] == [20.0, 14.0, 2.0]
    read = await measured.client.post("/api/activations", json={"prompt": "a", "sae": own})
    assert read.json()["intervention_sha256"] == answer["intervention_sha256"]


async def test_the_same_key_is_the_same_command(measured: Running) -> None:
    sae_id = await measured.ready()
    body = {"type": "Steer", "sae_id": sae_id, "features": [IN_MAX]}
    headers = {"Idempotency-Key": "k", "Prefer": "wait=5"}
    first = (await measured.client.post("/api/commands", json=body, headers=headers)).json()
    await measured.command("Detach", sae_id=sae_id)
    measured.engine.maxima = {}
    again = await measured.client.post("/api/commands", json=body, headers=headers)
    assert (again.status_code, again.json()["position"]) == (200, first["position"])


@pytest.mark.parametrize(
    ("edit", "status", "code"),
    [
        ({"feature": 5, "strength": 1, "unit": "max"}, 422, "sae_unsupported"),
        ({"feature": 4, "strength": 1, "unit": "max"}, 400, "bad_request"),
        ({"feature": 3, "strength": 0, "unit": "max", "method": "scale"}, 400, "bad_request"),
        ({"feature": 99, "strength": 1, "unit": "unit"}, 422, "feature_out_of_range"),
    ],
)
async def test_refusals(measured: Running, edit: dict[str, Any], status: int, code: str) -> None:
    sae_id = await measured.ready()
    put = await measured.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
    assert (put.status_code, put.json()["code"]) == (status, code)
    assert (await measured.events())[-1]["type"] == "CommandRejected"
    text = await measured.client.post("/v1/completions", json={**ASK, "sae": {"steering": [edit]}})
    assert (text.status_code, text.json()["error"]["code"]) == (status, code)
    assert (await measured.client.get(f"/api/saes/{sae_id}/steering")).json()["features"] == []


async def test_of_what_is_not_attached(measured: Running) -> None:
    sae_id = await measured.ready(attach=False)
    put = await measured.client.put(f"/api/saes/{sae_id}/steering", json={"features": [IN_MAX]})
    assert (put.status_code, put.json()["code"]) == (409, "sae_not_attached")
    text = await measured.client.post("/v1/completions", json={**ASK, "sae": {"steering": [IN_MAX]}})
    assert (text.status_code, text.json()["error"]["code"]) == (409, "sae_not_attached")


async def test_a_feature_that_is_not_there_is_told_before_the_unit_of_another(measured: Running) -> None:
    sae_id = await measured.ready()
    edits = [IN_MAX, {"feature": 99, "strength": 1}]
    put = await measured.client.put(f"/api/saes/{sae_id}/steering", json={"features": edits})
    assert (put.status_code, put.json()["code"]) == (422, "feature_out_of_range")
