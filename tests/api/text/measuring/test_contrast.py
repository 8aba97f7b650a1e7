"""Contrast over HTTP, with the fake engine: token t has 3, 2 and 1 at features t, t + 1 and t + 2, modulo 32."""

from __future__ import annotations

import asyncio
from statistics import fmean
from typing import Any

import pytest

from tests.measuring.test_contrast import auroc, rate, youden

from ...conftest import Running, serving

pytestmark = pytest.mark.anyio

D_SAE = 32
TEXTS = {"positive": ["xab", "xbc", "xaa"], "negative": ["xdd", "xbd"]}


def pooled(text: str, how: str) -> list[float]:
    """Without the first token, a sink."""
    rows = [[{0: 3.0, 1: 2.0, 2: 1.0}.get((n - byte) % D_SAE, 0.0) for n in range(D_SAE)] for byte in text.encode()[1:]]
    pools: dict[str, Any] = {"max": max, "mean": fmean, "last": lambda column: column[-1]}
    return [pools[how](column) for column in zip(*rows, strict=True)]


async def ask(service: Running, **body: Any) -> dict[str, Any]:
    answer = await service.client.post("/api/contrast", json={**TEXTS, **body})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


@pytest.mark.parametrize("how", ["max", "mean", "last"])
async def test_each_feature_by_hand(service: Running, how: str) -> None:
    sae_id = await service.ready()
    before = len(await service.events())
    told = await ask(service, pooling=how, top=D_SAE)
    assert (told["sae_id"], told["tokens"], told["excluded"]) == (sae_id, 10, 5)
    sides = {name: [pooled(text, how) for text in texts] for name, texts in TEXTS.items()}
    for row in told["features"]:
        n = row["feature"]
        a, b = ([each[n] for each in sides[name]] for name in ("positive", "negative"))
        counted = [byte for texts in TEXTS.values() for text in texts for byte in text.encode()[1:]]
        want = {
            "mean_a": fmean(a), "mean_b": fmean(b), "difference": fmean(a) - fmean(b),
            "frac_active_a": fmean(x > 0 for x in a), "frac_active_b": fmean(x > 0 for x in b),
            "auroc": auroc(a, b), "threshold": youden(a, b),
            "density": fmean((n - byte) % D_SAE < 3 for byte in counted),
        }  # fmt: skip
        assert {name: row[name] for name in want} == pytest.approx(want), n
        assert (row["label"], row["held_out"]) == (None, None)
    keys = [(-round(abs(row["auroc"] - 0.5), 9), -abs(row["difference"]), row["feature"]) for row in told["features"]]
    assert keys == sorted(keys)
    assert len({row["feature"] for row in told["features"]}) == D_SAE
    assert len((await ask(service, pooling=how))["features"]) == 20
    assert len(await service.events()) == before, "nothing of it goes on record"


async def test_a_part_is_held_out(service: Running) -> None:
    await service.ready()
    texts = {"positive": ["xa", "xa", "xaq", "xb"], "negative": ["xg", "xh", "xa", "xg"]}
    told = await ask(service, **texts, held_out=0.5, top=1)
    (row,) = told["features"]
    sides = [[pooled(text, "max")[row["feature"]] for text in some] for some in texts.values()]
    (a, b), (rest_a, rest_b) = [side[:2] for side in sides], [side[2:] for side in sides]
    assert row["auroc"] == auroc(a, b) == 1
    assert row["threshold"] == youden(a, b)
    assert row["held_out"] == {
        "mean_a": fmean(rest_a), "mean_b": fmean(rest_b), "difference": fmean(rest_a) - fmean(rest_b),
        "frac_active_a": fmean(x > 0 for x in rest_a), "frac_active_b": fmean(x > 0 for x in rest_b),
        "auroc": auroc(rest_a, rest_b),
        "true_positive_rate": rate(rest_a, row["threshold"]), "false_positive_rate": rate(rest_b, row["threshold"]),
    }  # fmt: skip


async def test_chats_and_what_is_not_counted(service: Running) -> None:
    await service.ready()
    chat = [{"role": "user", "content": "ab", "name": "Ann"}]
    told = await ask(service, positive=[chat], negative=["xcd"], exclude=["sink", "template"])
    assert (told["tokens"], told["excluded"]) == (4, 1 + len("<user>\n<assistant>"))
    everything = await ask(service, positive=["a"], negative=["b"], exclude=[])
    assert (everything["tokens"], everything["excluded"]) == (2, 0)
    bare = await service.client.post("/api/contrast", json={**TEXTS, "negative": ["xd", "a"]})
    assert (bare.status_code, bare.json()["param"]) == (400, "negative")
    assert "negative[1]" in bare.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"positive": []}, 400, "bad_request"),
        ({"positive": [""]}, 400, "bad_request"),
        ({"positive": [[]]}, 400, "bad_request"),
        ({"positive": [[{"role": "user", "content": "a", "colour": 1}]]}, 400, "bad_request"),
        ({"positive": ["xa"] * 200, "negative": ["xb"] * 57}, 400, "bad_request"),
        ({"pooling": "sum"}, 400, "bad_request"),
        ({"exclude": ["first"]}, 400, "bad_request"),
        ({"top": 0}, 400, "bad_request"),
        ({"held_out": 1}, 400, "bad_request"),
        ({"held_out": 0.9}, 400, "bad_request"),
        ({"sae_id": "none"}, 404, "sae_not_found"),
    ],
    ids=str,
)
async def test_refusals(service: Running, changes: dict[str, Any], status: int, code: str) -> None:
    await service.ready()
    answer = await service.client.post("/api/contrast", json={**TEXTS, **changes})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_too_many_features_for_so_many_texts(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_actor.api.text.measuring.contrast.MOST_VALUES", 100)
    await service.ready()
    answer = await service.client.post("/api/contrast", json=TEXTS)
    assert answer.status_code == 400
    assert "5 texts × 32 features" in answer.json()["detail"]
    assert "100" in answer.json()["detail"]


async def test_of_what_is_attached(service: Running) -> None:
    assert (await service.client.post("/api/contrast", json=TEXTS)).json()["code"] == "model_not_loaded"
    await service.ready(attach=False)
    assert (await service.client.post("/api/contrast", json=TEXTS)).json()["code"] == "sae_not_attached"
    made = await service.client.post(
        "/api/vectors", json={"name": "own", "hook_point": {"kind": "resid_post", "layer": 1}, "rows": [[1.0] * 16]}
    )
    await service.client.post(f"/api/saes/{made.json()['sae_id']}/attach")
    vectors = await service.client.post("/api/contrast", json=TEXTS)
    assert (vectors.status_code, vectors.json()["code"]) == (422, "sae_unsupported")


async def test_an_sae_that_is_detached_meanwhile() -> None:
    async with serving() as service:
        sae_id = await service.ready()
        service.engine.step_seconds = 0.05
        service.engine.max_running = 1
        asked = service.client.post("/api/contrast", json={**TEXTS, "positive": ["xab"] * 40})
        answering = asyncio.create_task(asked)
        while not service.engine._streams:
            await asyncio.sleep(0.005)
        await service.client.post(f"/api/saes/{sae_id}/detach")
        answer = await answering
        assert (answer.status_code, answer.json()["code"]) == (409, "sae_not_attached")
        assert not service.engine._streams, "what was begun for it ends with it"
