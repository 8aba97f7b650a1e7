"""An evaluation as SAEBench's `core` writes it: valid against its schema, with the numbers of the run."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.msgpack import decode, encode

from sae_actor.runs.evaluate import STATE
from tests.api.conftest import Running

from .conftest import TEXTS, run, until

pytestmark = pytest.mark.anyio

SCHEMA = json.loads((Path(__file__).parent / "saebench_core.json").read_text("utf-8"))
D_SAE = 32


async def asked(service: Running, run_id: str) -> dict[str, Any]:
    answer = await service.client.get(f"/api/runs/{run_id}", params={"format": "saebench"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    jsonschema.validate(found, SCHEMA)
    return found


async def test_the_numbers_are_those_of_the_run(service: Running) -> None:
    await service.ready()
    done = await until(service, await run(service), "completed")
    found, summary = await asked(service, done["run_id"]), done["summary"]
    metrics = found["eval_result_metrics"]
    told = {name: value for part in metrics.values() for name, value in part.items()}
    for name in set(told) & set(summary):
        assert told[name] == summary[name]
    assert set(told) - set(summary) == {
        "total_tokens_eval_reconstruction",
        "total_tokens_eval_sparsity_variance",
        "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim",
    }
    assert metrics["token_stats"] == {
        "total_tokens_eval_reconstruction": summary["tokens"],
        "total_tokens_eval_sparsity_variance": summary["tokens"] - summary["excluded"],
    }
    assert told["average_max_encoder_cosine_sim"] == told["average_max_decoder_cosine_sim"] == 0.5
    assert found["eval_config"]["n_eval_reconstruction_batches"] == 3
    assert (found["eval_id"], found["eval_type_id"]) == (done["run_id"], "core")
    asked_at = datetime.fromisoformat(done["created_at"])
    assert found["datetime_epoch_millis"] == int(asked_at.timestamp() * 1000)


async def test_each_feature(service: Running) -> None:
    """The feature token % 32 fires at a token: never at the first one of a text."""
    await service.ready()
    done = await until(service, await run(service), "completed")
    counted = done["summary"]["tokens"] - done["summary"]["excluded"]
    details = (await asked(service, done["run_id"]))["eval_result_details"]
    assert [each["index"] for each in details] == list(range(D_SAE))
    for each in details:
        on = [sum(byte % D_SAE == each["index"] for byte in text.encode()[1:]) for text in TEXTS]
        assert each["feature_density"] == pytest.approx(sum(on) / counted)
        firing = sum(count > 0 for count in on)
        assert each["consistent_activation_heuristic"] == pytest.approx(sum(on) / firing if firing else -1)
        assert each["encoder_norm"] == 1.0 + each["index"]


async def test_where_an_older_version_counted_no_texts(service: Running) -> None:
    await service.ready()
    done = await until(service, await run(service), "completed")
    with closing(service.context.runs.folder.open(done["run_id"])) as file:
        file.commit(kept={STATE: encode({**decode(file.kept(STATE) or b""), "texts_firing": []})})
    details = (await asked(service, done["run_id"]))["eval_result_details"]
    assert [each["consistent_activation_heuristic"] for each in details] == [-1.0] * D_SAE
    assert max(each["feature_density"] for each in details) > 0


async def test_what_it_was_measured_with(service: Running) -> None:
    sae_id = await service.ready()
    record = service.actor.state.saes[sae_id]
    done = await until(service, await run(service, exclude=["sink", "special"]), "completed")
    found = await asked(service, done["run_id"])
    said = found["eval_result_unstructured"]
    assert said["weights_sha256"] == record.weights_sha256
    assert said["texts_sha256"] == done["texts"][0]["sha256"] == done["summary"]["texts_sha256"]
    assert said["environment_sha256"] == [done["environment"]]
    assert said["environments"] == {done["environment"]: {"engine": "fake"}}
    assert said["rows_sha256"] == done["rows_sha256"]
    assert said["exclude"] == ["sink", "special"]
    assert found["eval_config"]["exclude_special_tokens_from_reconstruction"] is True
    assert found["sae_cfg_dict"]["d_sae"] == D_SAE
    await service.command("Detach", sae_id=sae_id)
    await service.command("Delete", sae_id=sae_id)
    after = await asked(service, done["run_id"])
    assert after == {**found, "sae_cfg_dict": None}


async def test_where_there_is_none(service: Running) -> None:
    await service.ready()
    profile = await run(service, "profile")
    await until(service, profile, "completed")
    answer = await service.client.get(f"/api/runs/{profile}", params={"format": "saebench"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    cancelled = await run(service, texts={"texts": TEXTS * 20})
    await service.command("CancelRun", run_id=cancelled)
    answer = await service.client.get(f"/api/runs/{cancelled}", params={"format": "saebench"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await service.client.get(f"/api/runs/{profile}", params={"format": "other"})
    assert answer.status_code == 400
