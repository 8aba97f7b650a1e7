"""Runs of kind `sweep`, worked out plainly: the fake engine makes letters, half as probable with every edit."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from sae_actor.domain.refs import SINK_WINDOW
from tests.api.conftest import MODEL, Running, serving
from tests.fakes.engine import FakeEngine
from tests.fakes.hub import FakeHub
from tests.fakes.log import MemoryLog

from .conftest import rows, until, view

pytestmark = pytest.mark.anyio

PROMPTS: list[Any] = ["one", "two", [{"role": "user", "content": "three"}]]
NONE: dict[str, Any] = {"name": "none", "sae": {"baseline": True}}
LOG2 = math.log(2)


def add(feature: int, strength: float) -> dict[str, Any]:
    edit = {"feature": feature, "strength": strength, "positions": "generated"}
    return {"name": f"{feature} by {strength:g}", "sae": {"steering": [edit]}}


async def sweep(service: Running, **spec: Any) -> str:
    """Ask for one; its id."""
    asked = {"prompts": PROMPTS, "variants": [NONE, add(3, 4.0)], "max_tokens": 6, "seeds": [1, 2], **spec}
    answer = await service.client.post("/api/commands", json={"type": "Run", "kind": "sweep", "spec": asked})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


def without_ids(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "generation_id"} for row in found]


async def test_a_row_for_each_prompt_variant_and_seed(service: Running) -> None:
    sae_id = await service.ready()
    run_id = await sweep(service, features=[5, 0], continuations=[" yes", " no way"])
    done = await until(service, run_id, "completed")
    found = await rows(service, run_id)
    names = [NONE["name"], "3 by 4"]
    assert [(row["prompt"], row["variant"], row["seed"]) for row in found] == [
        (prompt, name, seed) for prompt in range(3) for name in names for seed in (1, 2)
    ]
    assert done["rows"] == done["total"] == 12
    assert [each["name"] for each in done["variants"]] == names
    assert (done["seeds"], [each["sae_id"] for each in done["saes"]]) == ([1, 2], [sae_id])
    for row in found:
        edits = names.index(row["variant"])
        assert row["ce_unsteered"] == pytest.approx(LOG2)
        assert row["continuation_logprobs"] == pytest.approx([-LOG2 * (1 + edits) * n for n in (4, 7)])
        assert (len(row["text"]), row["finish_reason"], row["environment"]) == (6, "length", done["environment"])
        on = [[max(0, 3 - (feature - ord(each)) % 32) for each in row["text"]] for feature in (5, 0)]
        assert row["activations"] == [
            {"feature": feature, "activation": pytest.approx(sum(values) / 6)}
            for feature, values in zip((5, 0), on, strict=True)
        ]
        assert row["receipt"]["tokens_generated"] == 6
        assert row["receipt"]["tokens_edited"] == 5 * edits
    (bare, steered) = done["summary"]["variants"]
    assert (bare["variant"], bare["rows"], bare["finish_reasons"]) == ("none", 6, {"length": 6})
    assert bare["ce_unsteered"] == pytest.approx(LOG2)
    assert steered["continuation_logprobs"] == pytest.approx([-8 * LOG2, -14 * LOG2])
    for number, each in enumerate(steered["activations"]):
        values = [row["activations"][number]["activation"] for row in found if row["variant"] == "3 by 4"]
        assert each["activation"] == pytest.approx(sum(values) / 6)


async def test_its_texts_are_those_of_the_routes_and_on_record(service: Running) -> None:
    await service.ready()
    run_id = await sweep(service)
    await until(service, run_id, "completed")
    found = await rows(service, run_id)
    for row in found[2:4] + found[-2:]:
        sae = add(3, 4.0)["sae"]
        body = {"model": "default", "max_tokens": 6, "seed": row["seed"], "temperature": 1, "sae": sae}
        if row["prompt"] == 0:
            told = await service.client.post("/v1/completions", json={**body, "prompt": "one"})
            assert told.json()["choices"][0]["text"] == row["text"]
        else:
            told = await service.client.post("/v1/chat/completions", json={**body, "messages": PROMPTS[2]})
            assert told.json()["choices"][0]["message"]["content"] == row["text"]
        recorded = (await service.client.get(f"/api/generations/{row['generation_id']}")).raise_for_status().json()
        assert told.json()["sae"]["intervention_sha256"] == recorded["intervention_sha256"]
    tagged = (await service.client.get("/api/generations", params={"tag": f"run:{run_id}"})).json()["generations"]
    assert {each["generation_id"] for each in tagged} == {row["generation_id"] for row in found}
    log = json.dumps(await service.events())
    assert not any(row["text"] in log for row in found)
    assert '"three"' not in log


async def test_as_a_table(service: Running) -> None:
    """Texts with quotes, commas and lines come back from CSV as they are, lists as JSON."""
    await service.ready()
    service.engine.script = [*b'a "b",\n']
    run_id = await sweep(service, prompts=["one"], features=[1], continuations=["x"], seeds=[5], max_tokens=9)
    await until(service, run_id, "completed")
    answer = await service.client.get(f"/api/runs/{run_id}/rows", params={"format": "csv"})
    table = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    plain = await rows(service, run_id)
    assert [row["text"] for row in table] == [row["text"] for row in plain] == ['a "b",\n'] * 2
    for name in ("activations", "continuation_logprobs", "receipt"):
        assert [json.loads(row[name]) for row in table] == [row[name] for row in plain]
    assert [float(row["ce_unsteered"]) for row in table] == [row["ce_unsteered"] for row in plain]
    assert [row["finish_reason"] for row in plain] == ["stop", "stop"]


async def test_variants_are_frozen_when_it_is_asked_for(service: Running) -> None:
    """The server's steering, a preset, units: what they come to later has no part in it."""
    sae_id = await service.ready()
    service.engine.maxima = {7: 10.0}
    await service.command("Steer", sae_id=sae_id, features=[{"feature": 1, "strength": 2.0}])
    own = [{"sae_id": sae_id, "steering": [{"feature": 2, "strength": 3.0}]}]
    await service.command("SavePreset", name="calm", interventions=own)
    service.engine.text_gate = gate = asyncio.Event()
    unit = {"steering": [{"feature": 7, "strength": 0.5, "unit": "max"}]}
    variants = [{"name": "server"}, {"name": "calm", "sae": {"preset": "calm"}}, {"name": "unit", "sae": unit}]
    run_id = await sweep(service, variants=variants, seeds=[1])
    await service.command("Steer", sae_id=sae_id, features=[])
    await service.command("DeletePreset", name="calm")
    service.engine.maxima = {}
    gate.set()
    done = await until(service, run_id, "completed")
    frozen = [each["intervention"][0]["steering"][0] for each in done["variants"]]
    assert [(each["feature"], each["strength"], each["unit"]) for each in frozen] == [
        (1, 2.0, "raw"), (2, 3.0, "raw"), (7, 5.0, "raw"),
    ]  # fmt: skip
    by_id = {}
    for event in await service.events():
        if event["type"] == "GenerationStarted":
            by_id[event["data"]["generation_id"]] = event["data"]
    digests = {each["name"]: each["intervention_sha256"] for each in done["variants"]}
    for row in await rows(service, run_id):
        assert by_id[row["generation_id"]]["intervention_sha256"] == digests[row["variant"]]
        assert by_id[row["generation_id"]]["sink_window"] == SINK_WINDOW


async def test_a_seed_is_made_where_there_is_none(service: Running) -> None:
    await service.ready()
    one, other = [await until(service, await sweep(service, seeds=None), "completed") for _ in range(2)]
    assert len(one["seeds"]) == len(other["seeds"]) == 1
    assert one["seeds"] != other["seeds"]
    assert {row["seed"] for row in await rows(service, one["run_id"])} == set(one["seeds"])


async def test_a_repeated_key_is_one_sweep(service: Running) -> None:
    """The seed that was made, and what a unit comes to, are no part of what was asked."""
    await service.ready()
    service.engine.maxima = {7: 10.0}
    unit = {"steering": [{"feature": 7, "strength": 0.5, "unit": "max"}]}
    body = {"type": "Run", "kind": "sweep", "spec": {"prompts": ["a"], "variants": [{"name": "b", "sae": unit}]}}
    headers = {"idempotency-key": "mine"}
    one = await service.client.post("/api/commands", json=body, headers=headers)
    service.engine.maxima = {7: 20.0}
    other = await service.client.post("/api/commands", json=body, headers=headers)
    assert (one.status_code, one.json()) == (other.status_code, other.json())


async def test_an_interactive_text_goes_first(service: Running) -> None:
    await service.ready()
    service.engine.text_gate = gate = asyncio.Event()
    run_id = await sweep(service, prompts=["a"] * 20)
    body = {"model": "default", "prompt": "mine", "max_tokens": 30}
    asked = asyncio.ensure_future(service.client.post("/v1/completions", json=body))
    while not any(event["principal"] != "system" for event in await service.events()
                  if event["type"] == "GenerationStarted"):  # fmt: skip
        await asyncio.sleep(0.01)
    gate.set()
    told = (await asked).raise_for_status().json()["sae"]
    events = await service.events()
    mine = next(event["position"] for event in events if event["type"] == "GenerationFinished"
                and event["data"]["generation_id"] == told["generation_id"])  # fmt: skip
    ended = [event["position"] for event in events if event["type"] == "GenerationFinished"]
    assert min(ended) == mine, "no text of the run ended before it"
    assert (await until(service, run_id, "completed"))["rows"] == 80


async def test_interrupted_it_goes_on_where_it_was(service: Running) -> None:
    sae_id = await service.ready()
    asked: dict[str, Any] = {"prompts": PROMPTS * 4, "features": [1], "continuations": ["b"]}
    whole = await until(service, await sweep(service, **asked), "completed")
    service.engine.step_seconds = 0.002
    run_id = await sweep(service, **asked)
    await until(service, run_id, "running", "completed", rows=5)
    await service.command("Detach", sae_id=sae_id)
    waiting = await view(service, run_id)
    if waiting["state"] != "completed":
        assert (waiting["state"], waiting["reason"]) == ("waiting", f"{sae_id} is not attached")
    durable = await rows(service, run_id)
    await service.command("Attach", sae_id=sae_id)
    done = await until(service, run_id, "completed")
    found = await rows(service, run_id)
    assert found[: len(durable)] == durable, "what was durable is not made again"
    assert without_ids(found) == without_ids(await rows(service, whole["run_id"]))
    assert done["summary"] == whole["summary"]


async def test_a_restart_goes_on_with_what_is_durable(tmp_path: Path) -> None:
    log, hub, engine = MemoryLog(), FakeHub(), FakeEngine(step_seconds=0.002)
    async with serving(log, engine=engine, hub=hub, runs_folder=tmp_path) as service:
        await service.ready()
        run_id = await sweep(service, prompts=PROMPTS * 4)
        await until(service, run_id, "running", rows=5)
    async with serving(log, hub=hub, runs_folder=tmp_path) as service:
        before = await rows(service, run_id)
        assert 5 <= len(before) < 48
        done = await until(service, run_id, "completed")
        found = await rows(service, run_id)
        assert found[: len(before)] == before
        assert done["rows"] == len(found) == 48
        whole = await until(service, await sweep(service, prompts=PROMPTS * 4), "completed")
        assert without_ids(found) == without_ids(await rows(service, whole["run_id"]))
        assert done["summary"] == whole["summary"]


async def test_cancelled_and_deleted(service: Running) -> None:
    await service.ready()
    service.engine.text_gate = asyncio.Event()
    run_id = await sweep(service)
    while not any(event["type"] == "GenerationStarted" for event in await service.events()):
        await asyncio.sleep(0.01)
    assert service.context.generations.waiting == 0, "nobody waits because of it"
    await service.command("CancelRun", run_id=run_id)
    await service.context.generations.idle()
    ends = [event["data"]["finish_reason"] for event in await service.events() if event["type"] == "GenerationFinished"]
    assert set(ends) == {"cancelled"}
    assert (await view(service, run_id))["state"] == "cancelled"
    await service.command("DeleteRun", run_id=run_id)
    assert list(service.context.runs.folder.folder.glob("run-*")) == []


async def test_without_an_sae(service: Running) -> None:
    """It needs none to compare the model with itself, and goes on without it."""
    await service.command("LoadModel", model=MODEL)
    done = await until(service, await sweep(service, variants=[NONE, {"name": "server"}]), "completed")
    assert (done["saes"], done["rows"]) == ([], 12)
    texts = [row["text"] for row in await rows(service, done["run_id"])]
    assert texts[0:2] == texts[2:4]


async def test_prompts_out_of_a_file_and_uploaded(service: Running) -> None:
    await service.ready()
    lines = [{"text": "one"}, {"text": "two"}, {"messages": PROMPTS[2]}]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    put = await service.client.put("/api/texts", content=content, headers={"content-type": "application/x-ndjson"})
    (service.context.texts_roots[0] / "mine.jsonl").write_bytes(content)
    sources = (PROMPTS, {"texts": PROMPTS}, {"file": "mine.jsonl"}, {"texts_id": put.json()["texts_id"]})
    found = []
    for source in sources:
        done = await until(service, await sweep(service, prompts=source), "completed")
        found.append((without_ids(await rows(service, done["run_id"])), done["texts"][0]["sha256"]))
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][1] == put.json()["sha256"]


@pytest.mark.parametrize(
    ("spec", "status", "code", "param"),
    [
        ({"prompts": []}, 400, "bad_request", "texts"),
        ({"prompts": None}, 400, "bad_request", "spec.prompts"),
        ({"prompts": [[]]}, 400, "bad_request", "spec.prompts"),
        ({"prompts": [[{"role": "nobody", "content": "a"}]]}, 400, "bad_request", None),
        ({"variants": []}, 400, "bad_request", "spec"),
        ({"variants": [NONE, NONE]}, 400, "bad_request", "spec.variants[1].name"),
        ({"variants": [{"name": "a", "sae": {"tag": "b"}}]}, 400, "bad_request", "spec.variants[0].sae.tag"),
        ({"variants": [{"name": "a", "sae": {"details": True}}]}, 400, "bad_request", "spec.variants[0].sae.details"),
        ({"variants": [{"name": "a", "sae": {"more": 1}}]}, 400, "bad_request", "spec.variants[0].sae"),
        ({"variants": [{"name": "a", "sae": {"preset": "none"}}]}, 404, "model_not_found", "model"),
        ({"variants": [add(99, 1.0)]}, 422, "feature_out_of_range", None),
        ({"variants": [{"name": "a", "sae": {"expect_position": 1}}]}, 412, "precondition_failed", None),
        ({"features": [99]}, 422, "feature_out_of_range", None),
        ({"sae_id": "a-12345678"}, 400, "bad_request", "spec.sae_id"),
        ({"continuations": [""]}, 400, "bad_request", "spec.continuations"),
        ({"seeds": [1, 1]}, 400, "bad_request", "spec.seeds"),
        ({"max_tokens": 0}, 400, "bad_request", "spec"),
        ({"texts": {"texts": ["a"]}}, 400, "bad_request", "spec"),
    ],
)
async def test_refused(service: Running, spec: dict[str, Any], status: int, code: str, param: str | None) -> None:
    await service.ready()
    asked = {"prompts": PROMPTS, "variants": [NONE], **spec}
    answer = await service.client.post("/api/commands", json={"type": "Run", "kind": "sweep", "spec": asked})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    if param is not None:
        assert answer.json().get("param") == param
    assert list(service.context.runs.folder.folder.glob("run-*")) == []


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"prompts": ["a", "b" * 300]}, "prompt 1"),
        ({"prompts": ["a", "b" * 240], "max_tokens": 20}, "prompt 1"),
        ({"variants": [{"name": "a", "sae": {"steering": [
            {"feature": 1, "strength": 1.0, "positions": {"role": "user"}}]}}], "prompts": [PROMPTS[2], "a"]},
         "prompt 1"),
    ],
)  # fmt: skip
async def test_what_cannot_be_made_fails_it_before_the_first_row(
    service: Running, spec: dict[str, Any], why: str
) -> None:
    await service.ready()
    failed = await until(service, await sweep(service, **spec), "failed")
    assert failed["error"]["code"] == "bad_request"
    assert failed["error"]["detail"].startswith(why)
    assert failed["rows"] == 0
