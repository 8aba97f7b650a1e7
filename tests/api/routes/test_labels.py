"""Labels of features: imported, searched, exported, deleted; shown wherever a feature's number is."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Running, serving
from ..runs.conftest import run, until
from .labelling import NDJSON, NEURONPEDIA, OURS, lines, numbers, put, search

pytestmark = pytest.mark.anyio


async def test_imported_searched_and_on_record(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    body = lines(*OURS)
    before = service.actor.state.revision
    told = await put(service, sae_id, body)
    sha256 = hashlib.sha256(body).hexdigest()
    assert (told["labels"], told["features"], told["sha256"]) == (2, 2, sha256)
    event = (await service.events())[-1]
    assert (event["type"], event["position"]) == ("LabelsImported", told["position"])
    assert event["data"]["sources"] == [
        {"source": sha256, "labels": 1, "features": 1},
        {"source": "me", "labels": 1, "features": 1},
    ]
    assert service.actor.state.revision == before, "labels do not change what If-Match compares"
    assert await search(service, sae_id, q="sea") == {
        "features": [{"feature": 3, "label": "the sea", "density": None, "max": None, "top_tokens": []}],
        "total": 1,
    }
    assert await numbers(service, sae_id, q="harb SHIPS") == [5]
    assert (await search(service, sae_id, q="desert"))["total"] == 0
    assert await numbers(service, sae_id) == [3, 5]


async def test_the_same_source_is_replaced(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    await put(service, sae_id, lines(*OURS))
    await put(service, sae_id, lines({"feature": 6, "label": "boats"}), source="me")
    assert await numbers(service, sae_id) == [3, 6]
    later = await put(service, sae_id, lines({"feature": 3, "label": "the ocean"}), source="you")
    (row,) = (await search(service, sae_id, q="ocean"))["features"]
    assert row["feature"] == 3, "of two sources the later one counts"
    assert (await search(service, sae_id, q="sea"))["total"] == 0
    gone = await service.client.delete(f"/api/saes/{sae_id}/labels", params={"source": "you"})
    assert (gone.status_code, gone.json()["labels"], gone.json()["position"]) == (200, 1, later["position"] + 1)
    assert await numbers(service, sae_id, q="sea") == [3]
    unknown = await service.client.delete(f"/api/saes/{sae_id}/labels", params={"source": "you"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert (await service.client.delete(f"/api/saes/{sae_id}/labels")).json()["labels"] == 2
    assert (await search(service, sae_id))["total"] == 0


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ({"layers.2_latent3": "x"}, 422, "sae_incompatible"),
        ({"latent": "explanations/transformer.h.0.mlp_latent3.txt", "explanation": "x"}, 422, "sae_incompatible"),
        ({"feature": 32, "label": "x"}, 422, "feature_out_of_range"),
        ({"feature": 3, "lable": "x"}, 400, "bad_request"),
        ({"feature": 3, "label": "x", "more": 1}, 400, "bad_request"),
        ({"feature": 3, "label": ""}, 400, "bad_request"),
        ({"feature": 3, "label": "x", "source": "@folder"}, 400, "bad_request"),
        ({"index": "40", "description": "x"}, 422, "sae_incompatible"),
        ({"modelId": "tiny", "layer": "2-res-32", "index": "1", "description": "x"}, 422, "sae_incompatible"),
        ({"modelId": "tiny", "layer": "1-res-16k", "index": "1", "description": "x"}, 422, "sae_incompatible"),
        ({"index": "1", "maxActApprox": 1.0, "vector": [0.5] * 9}, 422, "sae_incompatible"),
        ({"index": "1", "maxActApprox": 1.0, "hookName": "blocks.2.hook_resid_post"}, 422, "sae_incompatible"),
        ({"hfRepoId": "org/others", "hfFolderId": "layer.1"}, 422, "sae_incompatible"),
        ({"hfRepoId": "org/saes", "hfFolderId": "layer.2"}, 422, "sae_incompatible"),
        ({"index": "1", "tokens": ["a"], "values": [1.0, 2.0]}, 400, "bad_request"),
        ({"index": "1"}, 400, "bad_request"),
        ({"hello": "world"}, 400, "bad_request"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
async def test_what_is_refused_leaves_nothing(
    service: Running, line: Any, status: int, code: str, tmp_path: Path
) -> None:
    sae_id = await service.ready(attach=False)
    events = await service.events()
    assert (await put(service, sae_id, lines(OURS[0], line), status))["code"] == code
    assert await service.events() == events
    assert (await search(service, sae_id))["total"] == 0
    assert [*service.context.features.kept("x").parent.iterdir()] == []


async def test_its_own_repository_is_accepted(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    where = {"hfRepoId": "org/saes", "hfFolderId": "layer.1"}
    assert (await put(service, sae_id, lines(where, NEURONPEDIA[0])))["labels"] == 1


async def test_other_bodies() -> None:
    async with serving(upload_bytes=500) as service:
        sae_id = await service.ready(attach=False)
        path = f"/api/saes/{sae_id}/labels"
        for content, kind, status, code in (
            (lines(OURS[0]), "application/json", 415, "unsupported_media_type"),
            (lines(*OURS * 20), "application/x-ndjson", 413, "too_large"),
            (gzip.compress(lines(*OURS * 500)), "application/x-ndjson", 413, "too_large"),
            (gzip.compress(lines(OURS[0]))[:-12], "application/gzip", 400, "bad_request"),
            (b"{", "application/x-ndjson", 400, "bad_request"),
            (b"\n\n", "application/x-ndjson", 400, "bad_request"),
        ):
            answer = await service.client.put(path, content=content, headers={"content-type": kind})
            assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        none = await service.client.put("/api/saes/none/labels", content=b"{}", headers=NDJSON)
        assert (none.status_code, none.json()["code"]) == (404, "sae_not_found")
        bad = await service.client.put(path, content=lines(OURS[0]), headers=NDJSON, params={"source": "@profile"})
        assert bad.status_code == 400


async def test_sorted_in_pages(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    given = [(4, 0.1, 9.0), (2, 0.3, 1.0), (9, 0.2, 5.0), (7, None, None)]
    stats = [{"index": str(n), "frac_nonzero": d, "maxActApprox": m} for n, d, m in given if d is not None]
    labels = [{"feature": n, "label": label} for n, label in ((4, "b"), (2, "A"), (7, "c"))]
    await put(service, sae_id, lines(*stats))
    await put(service, sae_id, lines(*labels))
    for sort, wanted in (
        ("index", [2, 4, 7, 9]),
        ("density", [2, 9, 4, 7]),
        ("max", [4, 9, 2, 7]),
        ("label", [2, 4, 7, 9]),
    ):
        seen: list[int] = []
        while page := await numbers(service, sae_id, sort=sort, limit=1, **({"after": seen[-1]} if seen else {})):
            seen += page
        assert seen == wanted, sort
    assert (await search(service, sae_id, limit=2))["total"] == 4
    for query in ({"sort": "size"}, {"limit": "0"}, {"after": "-1"}, {"q": "x" * 501}):
        assert (await service.client.get(f"/api/saes/{sae_id}/features", params=query)).status_code == 400


async def test_words_that_are_signs_of_a_query_are_words(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    await put(service, sae_id, lines({"feature": 1, "label": 'NOT "near" a OR b*'}, {"feature": 2, "label": "?!"}))
    assert await numbers(service, sae_id, q='"NOT" near OR') == [1]
    assert await numbers(service, sae_id, q="?!") == [2]
    assert await numbers(service, sae_id, q="%") == []


def spoil(data: Path, ruin: Callable[[Path], object]) -> None:
    for path in data.glob("features.db-*"):
        path.unlink()
    ruin(data / "features.db")
    (data / "labels" / "begun.tmp").touch()


async def test_built_again_from_the_files(tmp_path: Path) -> None:
    async with serving(data=tmp_path) as service:
        sae_id = await service.ready(attach=False)
        await put(service, sae_id, lines(*OURS, *NEURONPEDIA))
        await put(service, sae_id, gzip.compress(lines({"feature": 3, "label": "waters"})), source="me")
        shown, log, hub = await search(service, sae_id), service.log, service.hub
        assert len([*(tmp_path / "labels").iterdir()]) == 2
    for ruin in (lambda path: path.unlink(), lambda path: path.write_bytes(b"no database" * 100), lambda _: None):
        spoil(tmp_path, ruin)
        async with serving(log, data=tmp_path, hub=hub) as service:
            assert await search(service, sae_id) == shown
            assert len([*(tmp_path / "labels").iterdir()]) == 2


async def test_deleting_the_sae_deletes_them(tmp_path: Path) -> None:
    async with serving(data=tmp_path) as service:
        sae_id, other = await service.ready(attach=False), await service.download("layer.2")
        for each in (sae_id, other):
            await put(service, each, lines(OURS[0]))
        await put(service, sae_id, lines(OURS[1]))
        service.context.features.directory.put_statistics(sae_id, [{"feature": 9, "density": 0.5, "max": 2.0}])
        answer = await service.client.delete(f"/api/saes/{sae_id}")
        assert answer.status_code == 200
        event = (await service.events())[-1]
        assert (event["type"], event["data"]["labels"]) == ("SaeDeleted", 2)
        assert list((await service.client.get("/api/state")).json()["labels"]) == [other]
        assert [path.name for path in (tmp_path / "labels").iterdir()] == [hashlib.sha256(lines(OURS[0])).hexdigest()]
        assert await service.download("layer.1") == sae_id
        assert (await search(service, sae_id))["total"] == 0
        assert await numbers(service, other) == [3]


def holding(folder: Path, *words: bytes) -> list[str]:
    """The files in a folder that hold one of these words, however they are written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(word in path.read_bytes().lower() for word in words)]


async def test_what_is_deleted_is_in_no_file_any_more(tmp_path: Path) -> None:
    """Neither in a write-ahead log nor among the words that are searched."""
    async with serving(data=tmp_path) as service:
        sae_id = await service.ready(attach=False)
        canary = {"feature": 3, "label": "Zanzibarcanary waits"}
        for _ in range(2):
            await put(service, sae_id, lines(*OURS), source="others")
            await put(service, sae_id, lines(canary), source="mine")
            assert await numbers(service, sae_id, q="zanzibarcanary") == [3]
            await put(service, sae_id, lines({**canary, "label": "something else"}), source="mine")
            assert holding(tmp_path, b"zanzibarcanary") == []
            await put(service, sae_id, lines(canary), source="mine")
            (await service.client.delete(f"/api/saes/{sae_id}/labels", params={"source": "mine"})).raise_for_status()
            assert holding(tmp_path, b"zanzibarcanary") == []
        assert await numbers(service, sae_id, q="ships") == [5]
        await put(service, sae_id, lines(canary), source="mine")
        await service.command("Delete", sae_id=sae_id)
        assert holding(tmp_path, b"zanzibarcanary", b"harbours") == []


async def test_examples_of_a_deleted_run_are_in_no_file_any_more(tmp_path: Path) -> None:
    async with serving(data=tmp_path) as service:
        await service.ready()
        run_id = await run(service, "profile", {"texts": ["zqxj"] * 3})
        await until(service, run_id, "completed")
        canaries = (b'"z","q","x","j"', b"zqxj")  # a token of the fake model is a byte
        assert holding(tmp_path, *canaries)
        await service.command("DeleteRun", run_id=run_id)
        assert holding(tmp_path, *canaries) == []


async def test_statistics_of_a_run_count_most(service: Running) -> None:
    sae_id = await service.ready()
    await put(service, sae_id, lines(*NEURONPEDIA))
    run_id = await run(service, "profile", texts={"texts": ["gag"]})
    await until(service, run_id, "completed")
    (row,) = (await search(service, sae_id, q="storms"))["features"]
    assert (row["density"], row["max"], row["top_tokens"], row["label"]) == (0.5, 6.0, ["g"], "storms at night")
    await put(service, sae_id, lines(NEURONPEDIA[2]), source="later")
    assert (await search(service, sae_id, q="storms"))["features"] == [row]


async def test_next_to_every_number(service: Running) -> None:
    sae_id = await service.ready()
    named = [{"feature": n, "label": f"label {n}"} for n in range(0, 32, 2)]
    await put(service, sae_id, lines(*named))
    read = (await service.client.post("/api/activations", json={"prompt": "ab", "features": [2, 3]})).json()
    assert [each.get("label") for each in read["features"][0]] == ["label 2", None]
    body = {"model": "default", "prompt": "ab", "max_tokens": 3, "sae": {"top_k_features": 8}}
    text = (await service.client.post("/v1/completions", json=body)).json()
    shown = [each for row in text["sae"]["features"] for each in row]
    assert shown
    assert all(each.get("label") == (None if each["feature"] % 2 else f"label {each['feature']}") for each in shown)
    edits = [{"feature": 2, "strength": 3.0}, {"feature": 5, "strength": 1.0}]
    steering = f"/api/saes/{sae_id}/steering"
    assert (await service.client.put(steering, json={"features": edits})).json()["labels"] == {"2": "label 2"}
    told = (await service.client.get(steering)).json()
    assert told["labels"] == {"2": "label 2"}
    again = await service.client.put(steering, json={"features": told["features"]})
    assert again.status_code == 200, "edits can be sent back as they were read"
    assert (await service.client.get("/api/saes/attachment")).json()["labels"] == {"2": "label 2"}
    assert "labels" not in (await service.client.get("/api/state")).json()["attachments"][0]


async def test_where_it_was_last_steered(service: Running) -> None:
    sae_id = await service.ready()
    one = f"/api/saes/{sae_id}/features"
    assert (await service.client.get(f"{one}/2")).json()["last_steered"] is None
    edit = {"feature": 2, "strength": 3.0}
    told = (await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})).json()
    at = (await service.client.get(f"{one}/2")).json()["last_steered"]
    assert (at["position"], at["generation_id"], at["strength"], at["method"]) == (told["position"], None, 3.0, "add")
    own = {"steering": [{"feature": 4, "strength": 7.0}]}
    text = await service.client.post("/v1/completions", json={"model": "default", "prompt": "a", "sae": own})
    at = (await service.client.get(f"{one}/4")).json()["last_steered"]
    assert (at["generation_id"], at["strength"]) == (text.json()["sae"]["generation_id"], 7.0)
    assert (await service.client.get(f"{one}/2")).json()["last_steered"]["position"] == told["position"]


async def test_a_key_imports_once(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    path, headers = f"/api/saes/{sae_id}/labels", {**NDJSON, "Idempotency-Key": "once"}
    first = await service.client.put(path, content=lines(OURS[0]), headers=headers)
    events = await service.events()
    again = await service.client.put(path, content=lines(OURS[0]), headers=headers)
    assert (again.json(), await service.events()) == (first.json(), events)
    other = await service.client.put(path, content=lines(OURS[1]), headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await numbers(service, sae_id) == [3]
    assert len([*service.context.features.kept("x").parent.iterdir()]) == 1
