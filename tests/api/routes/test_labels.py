"""Labels of features: imported, searched, exported, deleted; shown wherever a feature's number is."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ..conftest import Running, serving
from ..runs.conftest import run, until

pytestmark = pytest.mark.anyio

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


@pytest.mark.parametrize("zipped", [False, True])
async def test_neuronpedias_lines_come_back_equal(service: Running, zipped: bool) -> None:
    sae_id = await service.ready()
    body = lines(*NEURONPEDIA)
    sent = gzip.compress(body[: len(body) // 2]) + gzip.compress(body[len(body) // 2 :]) if zipped else body
    told = await put(service, sae_id, sent)
    assert (told["labels"], told["features"]) == (2, 2)
    assert (await search(service, sae_id, q="storm"))["features"] == [
        {"feature": 7, "label": "storms at night", "density": 0.25, "max": 12.5, "top_tokens": [" gale"]}
    ]
    assert await numbers(service, sae_id, q="wave") == [8]
    assert await numbers(service, sae_id, sort="max") == [7, 8]
    assert await exported(service, sae_id, format="sent") == body
    whole = await exported(service, sae_id)
    assert [json.loads(line)["label"] for line in whole.splitlines()] == ["an older word", "storms at night"]
    shown = await search(service, sae_id)
    await service.client.delete(f"/api/saes/{sae_id}/labels")
    await put(service, sae_id, whole)
    assert await exported(service, sae_id) == whole
    assert [each["label"] for each in (await search(service, sae_id))["features"]] == ["storms at night"]
    await put(service, sae_id, body, source=told["source"])
    assert await search(service, sae_id) == shown
    one = (await service.client.get(f"/api/saes/{sae_id}/features/8")).json()
    assert one["examples"] == [{"tokens": ["a", " wave", "s"], "activations": [0.0, 9.0, 2.0]}]
    assert (one["max_activation"], one["top_tokens"], one["label"]) == (9.0, [" wave"], None)
    both = (await service.client.get(f"/api/saes/{sae_id}/features/7")).json()
    assert [each["label"] for each in both["labels"]] == ["storms at night", "an older word"]


async def test_delphis_lines(service: Running) -> None:
    sae_id = await service.ready(attach=False)
    told = await put(
        service, sae_id, lines({"layers.1_latent4": "rain"}, {"latent": "layers.1_latent9", "explanation": "fog"})
    )
    assert told["labels"] == 2
    assert [(each["feature"], each["label"]) for each in (await search(service, sae_id))["features"]] == [
        (4, "rain"),
        (9, "fog"),
    ]


def saved_by_delphi(folder: Path, explanations: dict[str, str]) -> list[Path]:
    """As delphi's `explainer_postprocess` saves them: a file for each latent, `str(latent)` with `.txt`, and in it the
    explanation by orjson."""
    folder.mkdir()
    for latent, explanation in explanations.items():
        (folder / f"{latent}.txt").write_bytes(msgspec.json.encode(explanation))
    return sorted(folder.glob("*.txt"))


async def test_delphis_files(service: Running, tmp_path: Path) -> None:
    """Each becomes a line under its own name, as `jq -c '{(input_filename): .}'` makes it."""
    sae_id = await service.ready(attach=False)
    explanations = {"layers.1_latent4": 'Words of rain and "storm"s.', "layers.1_latent11": "Nebel über dem Meer\n"}
    files = saved_by_delphi(tmp_path / "explanations", explanations)
    sent = lines(*({str(path): json.loads(path.read_bytes())} for path in files))
    assert (await put(service, sae_id, sent, source="delphi"))["labels"] == 2
    found = (await search(service, sae_id))["features"]
    assert [(each["feature"], each["label"]) for each in found] == [
        (4, 'Words of rain and "storm"s.'),
        (11, explanations["layers.1_latent11"]),
    ]
    assert await numbers(service, sae_id, q="meer nebel") == [11]
    assert await exported(service, sae_id, source="delphi", format="sent") == sent
    whole = await exported(service, sae_id)
    await service.client.delete(f"/api/saes/{sae_id}/labels")
    await put(service, sae_id, whole)
    assert await exported(service, sae_id) == whole
    assert (await search(service, sae_id))["features"] == found


NAMES = {"modelId": "tiny", "layer": "1-res-32"}


def batches() -> dict[str, list[dict[str, Any]]]:
    """Neuronpedia's bulk files of one source, with all fields that their lines have."""
    histogram = {"heights": [5, 1], "values": [0.5, 1.5]}
    explanations = [
        {"id": f"cl{n}", **NAMES, "index": str(n), "description": f"waves of the sea, {n}", "authorId": "a",
         "embedding": [0.25] * 256, "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini",
         "notes": None, "triggeredByUserId": None, "createdAt": "2025-01-01T00:00:00.000Z"}
        for n in range(4)
    ]  # fmt: skip
    features = [
        {**NAMES, "index": str(n), "creatorId": "c", "maxActApprox": 10.0 + n, "frac_nonzero": 0.01 * n,
         "pos_str": [f" wave{n}"], "pos_values": [1.5], "neg_str": ["x"], "neg_values": [-1.0],
         "freq_hist_data_bar_heights": histogram["heights"], "freq_hist_data_bar_values": histogram["values"],
         "logits_hist_data_bar_heights": histogram["heights"], "logits_hist_data_bar_values": histogram["values"],
         "topkCosSimIndices": [2, 3], "topkCosSimValues": [0.5, 0.25], "hasVector": n == 0,
         "vector": [0.5] * 16 if n == 0 else [], "vectorDefaultSteerStrength": None,
         "hookName": "blocks.1.hook_resid_post"}
        for n in range(4)
    ]  # fmt: skip
    activations = [
        {"id": f"act{n}", **NAMES, "index": str(n), "tokens": ["the", " sea", " is"], "values": [0.0, 10.0 + n, 2.0],
         "maxValue": 10.0 + n, "maxValueTokenIndex": 1, "minValue": 0.0, "binMin": 8.0, "binMax": 16.0,
         "binContains": 0.5, "qualifyingTokenIndex": None, "dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None,
         "dataSource": "monology/pile-uncopyrighted", "creatorId": "c", "createdAt": "2025-01-01T00:00:00.000Z"}
        for n in range(4)
    ]  # fmt: skip
    return {"explanations": explanations, "features": features, "activations": activations}


async def test_neuronpedias_batches_come_back_equal(service: Running) -> None:
    """`explanations/batch-0.jsonl.gz` and the like, two of each, one after the other; each kind is its own source."""
    sae_id = await service.ready()
    link = {
        "id": "1-res-32",
        "modelId": "tiny",
        "hfRepoId": "org/saes",
        "hfFolderId": "layer.1",
        "saelensRelease": None,
    }
    sent = {}
    for kind, rows in batches().items():
        first, second = lines(link, *rows[:2]), lines(*rows[2:])
        sent[kind] = first + second
        told = await put(service, sae_id, gzip.compress(first) + gzip.compress(second), source=f"np {kind}")
        assert (told["labels"], told["features"]) == (4 if kind == "explanations" else 0, 4)
    expected = [
        {"feature": n, "label": f"waves of the sea, {n}", "density": 0.01 * n, "max": 10.0 + n, "top_tokens": [" sea"]}
        for n in range(4)
    ]

    async def shown() -> None:
        assert (await search(service, sae_id, q="sea waves"))["features"] == expected
        assert await numbers(service, sae_id, sort="max") == [3, 2, 1, 0]
        one = (await service.client.get(f"/api/saes/{sae_id}/features/2")).json()
        assert one["examples"] == [{"tokens": ["the", " sea", " is"], "activations": [0.0, 12.0, 2.0]}]
        for kind, body in sent.items():
            assert await exported(service, sae_id, source=f"np {kind}", format="sent") == body

    await shown()
    whole = await exported(service, sae_id)
    assert [json.loads(line)["label"] for line in whole.splitlines()] == [each["label"] for each in expected]
    kept = {kind: await exported(service, sae_id, source=f"np {kind}", format="sent") for kind in sent}
    await service.client.delete(f"/api/saes/{sae_id}/labels")
    assert (await search(service, sae_id))["total"] == 0
    for kind, body in kept.items():
        await put(service, sae_id, gzip.compress(body), source=f"np {kind}")
    await shown()


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
