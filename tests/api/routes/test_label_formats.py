"""Labels in the formats of Neuronpedia and delphi: imported, and exported as they were."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ..conftest import Running
from .labelling import NEURONPEDIA, exported, lines, numbers, put, search

pytestmark = pytest.mark.anyio


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
