"""Runs of kind `contrast`: on small lists the numbers of `/api/contrast`, on long ones those of plain sums."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sae_actor.runs import pooled
from tests.api.conftest import Running
from tests.measuring.test_contrast import auroc

from .conftest import rows, until, view

pytestmark = pytest.mark.anyio

GOOD: list[Any] = ["a lovely day", "sun and joy", [{"role": "user", "content": "hooray"}], "well met", "yes please"]
BAD: list[Any] = ["an awful day", "rain & rage", "boo", [{"role": "user", "content": "ouch"}], "no thanks", "woe"]
D_SAE = 32


async def contrast(service: Running, **spec: Any) -> str:
    answer = await service.client.post("/api/commands", json={"type": "Run", "kind": "contrast", "spec": spec})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "environment"}


@pytest.mark.parametrize("width", [None, 5], ids=["at once", "some features at a time"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pooling": "mean", "held_out": 0.4},
        {"pooling": "last", "exclude": [], "top": 32},
        {"exclude": ["template"]},
    ],
)
async def test_the_numbers_of_the_route(
    service: Running, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], width: int | None
) -> None:
    sae_id = await service.ready()
    if width is not None:
        monkeypatch.setattr(pooled, "IN_MEMORY", width * (len(GOOD) + len(BAD)))
    labels = json.dumps({"feature": 5, "label": "five"}).encode()
    put = await service.client.put(
        f"/api/saes/{sae_id}/labels", content=labels, headers={"content-type": "application/x-ndjson"}
    )
    put.raise_for_status()
    asked = {"positive": GOOD, "negative": BAD, **more}
    told = (await service.client.post("/api/contrast", json=asked)).raise_for_status().json()
    done = await until(service, await contrast(service, **asked), "completed")
    found = await rows(service, done["run_id"])
    assert [plain(row) for row in found] == told["features"]
    assert {row["environment"] for row in found} == {done["environment"]}
    assert done["rows"] == done["total"] == more.get("top", 20)
    summary = done["summary"]
    assert (summary["tokens"], summary["excluded"]) == (told["tokens"], told["excluded"])
    assert (summary["positive"], summary["negative"], summary["left_out"]) == (5, 6, 0)
    assert (summary["sae_id"], done["spec"]["sae_id"]) == (sae_id, sae_id)
    assert "hooray" not in json.dumps(await service.events())


def pools(texts: list[str]) -> list[list[float]]:
    """The largest activations; the first token is a sink, and does not count."""
    return [[max(max(0, 3 - (f - token) % D_SAE) for token in text.encode()[1:]) for f in range(D_SAE)]
            for text in texts]  # fmt: skip


async def test_long_lists_in_groups(service: Running) -> None:
    """150 and 90 texts: the third group has texts of both."""
    await service.ready()
    good = [f"good {number * number} text" for number in range(150)]
    bad = [f"bad {number * 7} words" for number in range(90)]
    done = await until(service, await contrast(service, positive=good, negative={"texts": bad}, top=D_SAE), "completed")
    a, b = pools(good), pools(bad)
    found = await rows(service, done["run_id"])
    assert sorted(row["feature"] for row in found) == list(range(D_SAE))
    for row in found:
        one, other = ([text[row["feature"]] for text in some] for some in (a, b))
        assert row["auroc"] == pytest.approx(auroc(one, other), abs=1e-12)
        assert row["mean_a"] == pytest.approx(sum(one) / 150)
        assert row["mean_b"] == pytest.approx(sum(other) / 90)
    ranks = [(-abs(row["auroc"] - 0.5), -abs(row["difference"]), row["feature"]) for row in found]
    assert ranks == sorted(ranks)


async def test_one_list_with_labels(service: Running) -> None:
    await service.ready()
    whole = await until(service, await contrast(service, positive=GOOD, negative=BAD), "completed")
    wanted = await rows(service, whole["run_id"])

    def lines(good: Any, bad: Any) -> list[dict[str, Any]]:
        mixed = [(text, bad) for text in BAD[:3]] + [(text, good) for text in GOOD] + [(text, bad) for text in BAD[3:]]
        return [{"messages" if isinstance(text, list) else "text": text, "label": label} for text, label in mixed]

    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines(True, False))
    put = await service.client.put("/api/texts", content=content, headers={"content-type": "application/x-ndjson"})
    (service.context.texts_roots[0] / "mine.jsonl").write_bytes(content)
    for spec in (
        {"texts": {"texts_id": put.json()["texts_id"]}},
        {"texts": {"file": "mine.jsonl"}},
        {"texts": lines(1, 0)},
        {"texts": {"texts": lines("positive", "negative")}},
        {"texts": lines("glad", "sad"), "label": "glad"},
    ):
        done = await until(service, await contrast(service, **spec), "completed")
        assert await rows(service, done["run_id"]) == wanted
        assert [each["sha256"] for each in done["texts"]] == [each["sha256"] for each in whole["texts"]]


async def test_texts_of_which_nothing_counts_are_left_out(service: Running) -> None:
    await service.ready()
    whole = await until(service, await contrast(service, positive=GOOD, negative=BAD), "completed")
    spec = {"positive": ["a", *GOOD, "b"], "negative": [*BAD[:2], "c", *BAD[2:]]}
    done = await until(service, await contrast(service, **spec), "completed")
    assert done["summary"]["left_out"] == 3
    assert [row["feature"] for row in await rows(service, done["run_id"])] == [
        row["feature"] for row in await rows(service, whole["run_id"])
    ]
    failed = await until(service, await contrast(service, positive=["a", "b"], negative=BAD), "failed")
    assert failed["error"]["detail"] == "no positive text has a token that is counted"


async def test_interrupted_it_comes_to_the_same(service: Running) -> None:
    sae_id = await service.ready()
    spec = {"positive": GOOD * 30, "negative": BAD * 30}
    whole = await until(service, await contrast(service, **spec), "completed")
    service.engine.step_seconds = 0.001
    run_id = await contrast(service, **spec)
    await service.command("Detach", sae_id=sae_id)
    waiting = await view(service, run_id)
    if waiting["state"] != "completed":
        assert (waiting["state"], waiting["reason"]) == ("waiting", f"{sae_id} is not attached")
    await service.command("Attach", sae_id=sae_id)
    done = await until(service, run_id, "completed")
    assert (done["summary"], done["rows_sha256"]) == (whole["summary"], whole["rows_sha256"])


@pytest.mark.parametrize(
    ("spec", "status", "param"),
    [
        ({"positive": GOOD}, 400, "spec"),
        ({"positive": GOOD, "negative": BAD, "texts": []}, 400, "spec"),
        ({"positive": GOOD, "negative": []}, 400, "texts"),
        ({"positive": GOOD, "negative": BAD, "label": "a"}, 400, "spec.label"),
        ({"positive": GOOD, "negative": BAD, "held_out": 0.95}, 400, "spec.held_out"),
        ({"positive": GOOD, "negative": BAD, "top": 0}, 400, "spec"),
        ({"positive": GOOD, "negative": BAD, "more": 1}, 400, "spec"),
        ({"texts": ["a", "b"]}, 400, "spec.texts"),
        ({"texts": [{"text": "a", "label": "x"}]}, 400, "spec.label"),
        ({"texts": [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "label": "x"}, 400, "spec.negative"),
        ({"positive": GOOD, "negative": BAD, "sae_id": "a-12345678"}, 404, None),
    ],
)
async def test_refused(service: Running, spec: dict[str, Any], status: int, param: str | None) -> None:
    await service.ready()
    answer = await service.client.post("/api/commands", json={"type": "Run", "kind": "contrast", "spec": spec})
    assert answer.status_code == status, answer.text
    assert answer.json().get("param") == param or param is None
    assert list(service.context.runs.folder.folder.glob("run-*")) == []
