"""A profile in Neuronpedia's files: every line as the rows say, and imported as labels it comes to the same."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import Any

import pytest

from tests.api.conftest import Running

from .conftest import rows, run, until

pytestmark = pytest.mark.anyio

FEATURE = {"modelId", "layer", "index", "maxActApprox", "frac_nonzero", "pos_str", "pos_values", "neg_str",
           "neg_values", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
           "logits_hist_data_bar_values", "topkCosSimIndices", "topkCosSimValues", "hasVector", "vector",
           "hookName"}  # fmt: skip
ACTIVATION = {"modelId", "layer", "index", "tokens", "values", "maxValue", "maxValueTokenIndex", "minValue", "binMin",
              "binMax", "binContains", "qualifyingTokenIndex", "dataSource"}  # fmt: skip


async def files(service: Running, run_id: str) -> dict[str, bytes]:
    answer = await service.client.get(f"/api/runs/{run_id}/rows", params={"format": "neuronpedia"})
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.raise_for_status().content)) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(data).splitlines()]


async def test_every_line(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_actor.runs.exports.neuronpedia.BATCH", 20)
    await service.ready()
    run_id = await run(service, "profile")
    done = await until(service, run_id, "completed")
    found = await files(service, run_id)
    root = "v1/tiny/1-res-32"
    assert list(found) == [
        f"{root}/source.jsonl",
        *(f"{root}/{kind}/batch-{number}.jsonl.gz" for number in (0, 1) for kind in ("features", "activations")),
    ]
    features = [each for number in (0, 1) for each in lines(found[f"{root}/features/batch-{number}.jsonl.gz"])]
    examples = [each for number in (0, 1) for each in lines(found[f"{root}/activations/batch-{number}.jsonl.gz"])]
    told = await rows(service, run_id)
    assert [each["index"] for each in features] == [str(row["feature"]) for row in told]
    for line, row in zip(features, told, strict=True):
        assert set(line) == FEATURE
        assert (line["maxActApprox"], line["frac_nonzero"]) == (row["max"], row["density"])
        assert line["freq_hist_data_bar_heights"] == row["histogram"]["counts"]
        bars = line["freq_hist_data_bar_values"]
        assert bars == sorted(bars)
        if bars:
            assert bars[0] + bars[-1] == pytest.approx(row["max"])
        mine = [each for each in examples if each["index"] == line["index"]]
        top = [each for each in mine if each["binMin"] == -1]
        assert [each["values"] for each in top] == [each["activations"] for each in row["examples"]]
        inside = [(each["binMin"], each["binMax"], each["binContains"]) for each in mine if each["binMin"] != -1]
        assert inside == [(q["from"], q["to"], q["share"]) for q in row["quantiles"] for _ in q["examples"]]
    for line in examples:
        assert set(line) == ACTIVATION
        assert line["values"][line["maxValueTokenIndex"]] == line["maxValue"] == max(line["values"])
        assert line["values"][line["qualifyingTokenIndex"]] > 0
        if line["binMin"] != -1:
            assert line["binMin"] <= line["values"][line["qualifyingTokenIndex"]] <= line["binMax"]
        assert line["dataSource"] == f"sha256:{done['texts'][0]['sha256']}"
    (source,) = [json.loads(each) for each in found[f"{root}/source.jsonl"].splitlines()]
    assert (source["id"], source["modelId"]) == ("1-res-32", "tiny")
    assert (source["hfRepoId"], source["hfFolderId"]) == ("org/saes", "layer.1")


async def test_imported_it_comes_to_the_same(service: Running) -> None:
    sae_id = await service.ready()
    run_id = await run(service, "profile", quantiles=0)
    await until(service, run_id, "completed")
    told = await known(service, sae_id)
    found = await files(service, run_id)
    await service.command("DeleteRun", run_id=run_id)
    assert (await known(service, sae_id))["page"]["total"] == 0
    body = b"".join(found.values())  # gzip files one after the other are one; the first of them is plain
    plain = found["v1/tiny/1-res-32/source.jsonl"]
    put = await service.client.put(
        f"/api/saes/{sae_id}/labels",
        content=gzip.compress(plain) + body.removeprefix(plain),
        headers={"content-type": "application/gzip"},
    )
    assert put.status_code == 200, put.text
    assert put.json()["features"] == 32
    assert await known(service, sae_id) == told


async def known(service: Running, sae_id: str) -> dict[str, Any]:
    """What is shown of all features: the page, and each one's examples."""
    page = (await service.client.get(f"/api/saes/{sae_id}/features", params={"limit": 100})).raise_for_status().json()
    for each in page["features"]:
        each["top_tokens"] = sorted(each["top_tokens"])  # of equal activations any may come first
    examples = []
    for feature in range(32):
        one = (await service.client.get(f"/api/saes/{sae_id}/features/{feature}")).raise_for_status().json()
        examples.append(sorted((each["tokens"], each["activations"]) for each in one["examples"]))
    return {"page": page, "examples": examples}


async def test_of_profiles_alone(service: Running) -> None:
    await service.ready()
    run_id = await run(service)
    await until(service, run_id, "completed")
    answer = await service.client.get(f"/api/runs/{run_id}/rows", params={"format": "neuronpedia"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
