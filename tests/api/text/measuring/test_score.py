"""`/api/score`: given texts, scored under several interventions, on record like every generation."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from sae_actor.domain.evolve import fold
from sae_actor.domain.state import encode
from tests.fakes.engine import FakeEngine
from tests.fakes.log import MemoryLog

from ...conftest import Running, serving

pytestmark = pytest.mark.anyio

LN2 = math.log(2)
EDIT = {"feature": 3, "strength": 2.0}
STEERED = {"name": "steered", "sae": {"steering": [EDIT]}}
BARE = {"name": "bare", "sae": {"baseline": True}}
NDJSON = {"Accept": "application/x-ndjson"}


async def score(service: Running, **body: Any) -> list[dict[str, Any]]:
    answer = await service.client.post("/api/score", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


async def refused(service: Running, status: int = 400, **body: Any) -> dict[str, Any]:
    before = len(await service.events())
    answer = await service.client.post("/api/score", json={"inputs": [{"prompt": "hi"}], **body})
    assert answer.status_code == status, answer.text
    assert len(await service.events()) == before, "nothing of it goes on record"
    problem: dict[str, Any] = answer.json()
    return problem


async def test_a_text_with_the_usual_variants(service: Running) -> None:
    sae_id = await service.ready()
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [EDIT]})
    current, baseline = await score(service, inputs=[{"prompt": "hé", "id": "mine"}])
    ids = list("hé".encode())
    for result, edits in ((current, 1), (baseline, 0)):
        assert (result["input"], result["id"], result["token_ids"]) == (0, "mine", ids)
        assert "".join(result["tokens"]) == "hé"
        assert result["logprobs"] == [None, *[pytest.approx(-LN2 * (1 + edits))] * 2]
        assert result["scored"] == [1, 3]
        assert result["sum_logprob"] == pytest.approx(-2 * LN2 * (1 + edits))
        assert result["ce"] == pytest.approx(LN2 * (1 + edits))
        assert result["perplexity"] == pytest.approx(2 ** (1 + edits))
        assert result["kl_from_baseline"] == 0.5 * edits
        assert result["is_greedy"] is (edits == 0)
        assert {"targets", "top_logprobs"}.isdisjoint(result)
        assert result["sae"]["receipt"]["tokens_prompt"] == 3
        assert result["sae"]["receipt"]["tokens_generated"] == 0
    assert [each["variant"] for each in (current, baseline)] == ["current", "baseline"]
    assert [len(each["sae"]["interventions"]) for each in (current, baseline)] == [1, 0]
    assert current["sae"]["interventions"][0]["steering"][0]["feature"] == 3


async def test_a_continuation_by_text_and_by_ids(service: Running) -> None:
    await service.ready()
    inputs = [
        {"prompt": "ab", "continuation": "cde"},
        {"token_ids": [97, 98], "continuation": [99, 100, 101]},
        {"messages": [{"role": "user", "content": "Hi"}], "continuation": "yes"},
    ]
    generated = [{**EDIT, "positions": "generated", "exclude": []}]
    variants = [{"name": "on", "sae": {"steering": generated}}, BARE]
    results = await score(service, inputs=inputs, variants=variants)
    assert [(each["input"], each["variant"]) for each in results] == [(i, v) for i in range(3) for v in ("on", "bare")]
    text, _, ids, _, chat, _ = results
    assert text["token_ids"] == ids["token_ids"] == [97, 98, 99, 100, 101]
    assert (text["scored"], text["logprobs"]) == ([2, 5], ids["logprobs"])
    assert chat["token_ids"] == [*b"<user>Hi\n<assistant>", *b"yes"]
    assert chat["scored"] == [len(chat["token_ids"]) - 3, len(chat["token_ids"])]
    receipt = text["sae"]["receipt"]
    assert (receipt["tokens_prompt"], receipt["tokens_generated"], receipt["tokens_edited"]) == (2, 3, 2)
    targets = await score(service, inputs=inputs[:1], variants=variants, targets=["a"])
    assert targets[0]["sae"]["receipt"]["tokens_edited"] == 3, "the last token is run for targets"


async def test_what_follows_the_text(service: Running) -> None:
    await service.ready()
    (result,) = await score(
        service, inputs=[{"prompt": "ab", "continuation": "c"}], variants=[BARE], targets=["a", 33, "d"], top_logprobs=2
    )
    assert [(each["token"], each["token_id"], each["rank"]) for each in result["targets"]] == [
        ("a", 97, 1), ("!", 33, 3), ("d", 100, 69),
    ]  # fmt: skip
    first = result["targets"][0]
    assert (first["logprob"], first["logit"]) == (pytest.approx(-LN2), -1)
    top = result["top_logprobs"]
    assert (len(top), top[0]) == (4, None)
    assert [each["token"] for each in top[1]] == ["b", " "]
    assert top[1][0]["logprob"] == result["logprobs"][1]
    assert top[3] == [{name: first[name] for name in ("token", "token_id", "logprob")}, top[3][1]]
    assert result["kl_from_baseline"] == 0


async def test_every_line_is_a_result(service: Running) -> None:
    await service.ready()
    inputs = [{"prompt": "ab" * n} for n in range(1, 6)]
    body = {"inputs": inputs, "variants": [STEERED, BARE], "targets": ["x"]}
    whole = await score(service, **body)
    answer = await service.client.post("/api/score", json=body, headers=NDJSON)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    lines.sort(key=lambda each: (each["input"], -(each["variant"] == "steered")))
    for one, other in zip(whole, lines, strict=True):
        assert {**one, "sae": None} == {**other, "sae": None}


async def test_each_is_a_generation_on_record() -> None:
    async with serving(record_text=True) as service:
        await service.ready()
        results = await score(
            service, inputs=[{"prompt": "ab", "continuation": "cd"}, {"prompt": "xyz"}], variants=[STEERED, BARE],
            tag="mine", targets=["a"],
        )  # fmt: skip
        found = (await service.client.get("/api/generations", params={"tag": "mine"})).json()["generations"]
        assert [each["generation_id"] for each in found] == [each["sae"]["generation_id"] for each in results]
        assert {(each["kind"], each["state"], each["finish_reason"]) for each in found} == {
            ("score", "finished", "length")
        }
        first = found[0]
        assert first["digest"]["agrees"]
        assert first["runs_last"] is True
        assert first["score"] == {
            "counted": 2,
            "sum_logprob": pytest.approx(results[0]["sum_logprob"]),
            "is_greedy": False,
            "kl_from_baseline": 0.5,
        }
        assert (first["prompt_token_ids"], first["output_token_ids"], first["text"]) == ([97, 98], [99, 100], "")
        assert (found[2]["output_token_ids"], found[2]["runs_last"]) == ([], False)
        one = await service.client.get(f"/api/generations/{first['generation_id']}")
        assert one.json() == first


async def test_nothing_is_told_of_the_texts_otherwise(service: Running) -> None:
    await service.ready()
    await score(service, inputs=[{"prompt": "a secret", "continuation": "another"}], targets=["z"])
    told = json.dumps(await service.events())
    assert "secret" not in told
    assert "another" not in told


async def test_many_are_admitted_under_one_state_some_at_a_time() -> None:
    """At most 256 events a transaction; texts that are asked for meanwhile wait for none of them."""
    log = MemoryLog()
    sizes: list[int] = []
    append = log.append

    async def counted(drafts: Any, *, expected: int) -> Any:
        sizes.append(len(drafts))
        return await append(drafts, expected=expected)

    log.append = counted  # type: ignore[method-assign]
    async with serving(log, engine=FakeEngine(max_running=2, max_waiting=2)) as service:
        service.context.generations.places = 4
        sae_id = await service.ready()
        variants = [STEERED, BARE, {"name": "current"}]
        results = await score(service, inputs=[{"prompt": f"text {n}"} for n in range(100)], variants=variants)
        assert len(results) == 300
        assert max(sizes) == 256
        started = [each for each in await service.events() if each["type"] == "GenerationStarted"]
        positions = [each["position"] for each in started]
        assert positions == list(range(positions[0], positions[0] + 300))
        assert [each["sae"]["position"] for each in results] == positions
        await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [EDIT]})
        assert service.context.generations.waiting == service.context.generations.running == 0


@pytest.mark.parametrize("field", [
    {"stop_when": {"feature": 1, "above": 0.5}}, {"top_k_features": 3}, {"logprobs_of": ["a"]}, {"tag": "x"},
    {"top_k_exclude": []},
])  # fmt: skip
async def test_what_a_variant_cannot_have(service: Running, field: dict[str, Any]) -> None:
    await service.ready()
    problem = await refused(service, variants=[BARE, {"name": "one", "sae": field}])
    assert problem["param"] == f"variants[1].sae.{next(iter(field))}"


async def test_what_is_refused(service: Running) -> None:
    await service.ready()
    problem = await refused(service, targets=["a", "ab"])
    assert (problem["param"], problem["token_ids"]) == ("targets[1]", [97, 98])
    assert (await refused(service, targets=[9999]))["param"] == "targets[0]"
    assert (await refused(service, variants=[BARE, BARE]))["param"] == "variants[1].name"
    problem = await refused(service, inputs=[{"prompt": "a"}, {"token_ids": [9999]}])
    assert problem["param"] == "inputs[1]"
    assert (await refused(service, inputs=[{"prompt": "a", "continuation": ""}]))["param"] == "inputs[0]"
    assert (await refused(service, inputs=[{"prompt": "a" * 200, "continuation": "b" * 58}]))["param"] == "inputs[0]"
    wrongs: tuple[dict[str, Any], ...] = (
        {"inputs": []}, {"inputs": [{"prompt": "a", "token_ids": [1]}]}, {"inputs": [{}]}, {"variants": []},
        {"top_logprobs": 21}, {"variants": [{"name": ""}]}, {"model": "default"}, {"targets": []},
        {"inputs": [{"prompt": "a"}] * 1025}, {"variants": [{"name": str(n)} for n in range(17)]},
    )  # fmt: skip
    for wrong in wrongs:
        await refused(service, **wrong)
    moved = {"name": "moved", "sae": {"expect_position": 0}}
    assert (await refused(service, 412, variants=[BARE, moved]))["code"] == "precondition_failed"
    several = {"name": "other", "sae": {"interventions": [{"sae_id": "none-such", "steering": [EDIT]}]}}
    assert (await refused(service, 404, variants=[BARE, several]))["code"] == "sae_not_found"
    late = {"name": "late", "sae": {"steering": [{**EDIT, "positions": {"tokens": [2]}}]}}
    assert "past the text" in (await refused(service, variants=[late]))["detail"]
    roles = {"name": "roles", "sae": {"steering": [{**EDIT, "positions": {"role": "user"}}]}}
    assert (await refused(service, variants=[roles]))["param"] == "positions"


async def test_a_text_that_just_fits(service: Running) -> None:
    await service.ready()
    (result,) = await score(service, inputs=[{"prompt": "a" * 200, "continuation": "b" * 57}], variants=[BARE])
    assert len(result["token_ids"]) == 257


async def test_one_token_alone_has_nothing_to_count(service: Running) -> None:
    await service.ready()
    (result,) = await score(service, inputs=[{"prompt": "a"}], variants=[BARE], targets=["b"])
    assert (result["logprobs"], result["scored"], result["sum_logprob"]) == ([None], [1, 1], 0)
    assert (result["ce"], result["perplexity"], result["kl_from_baseline"]) == (None, None, None)
    assert result["targets"][0]["token"] == "b"


async def test_without_a_baseline_nothing_is_compared(service: Running) -> None:
    await service.ready()
    (result,) = await score(service, inputs=[{"prompt": "abc"}], variants=[STEERED])
    assert result["kl_from_baseline"] is None


async def test_without_a_model(service: Running) -> None:
    assert (await refused(service, 409))["code"] == "model_not_loaded"


async def test_an_sae_that_is_detached_meanwhile() -> None:
    gate = asyncio.Event()
    engine = FakeEngine(max_running=1, text_gate=gate)
    async with serving(engine=engine, drain_seconds=0.01) as service:
        sae_id = await service.ready()
        inputs = [{"prompt": "ab"}, {"prompt": "cd"}]
        asked = asyncio.create_task(
            service.client.post("/api/score", json={"inputs": inputs, "variants": [BARE, STEERED]})
        )
        while not any(each["type"] == "GenerationStarted" for each in await service.events()):
            await asyncio.sleep(0)
        detached = await service.client.post(f"/api/saes/{sae_id}/detach")
        assert detached.status_code == 200
        gate.set()
        answer = await asked
        assert (answer.status_code, answer.json()["code"]) == (409, "sae_not_attached")


async def test_a_failure_after_the_first_line() -> None:
    engine = FakeEngine()
    async with serving(engine=engine) as service:
        await service.ready()
        engine.faults = {next(iter(engine.residents)): 0}
        body = {"inputs": [{"prompt": "ab"}], "variants": [BARE, STEERED]}
        answer = await service.client.post("/api/score", json=body, headers=NDJSON)
        first, last = (json.loads(line) for line in answer.text.splitlines())
        assert (answer.status_code, first["variant"], last["error"]["code"]) == (200, "bare", "internal")
        again = await service.client.post("/api/score", json=body, headers=NDJSON)
        assert again.status_code == 409, "a failure before the first has its own status: the SAE is detached by now"


async def test_a_reader_of_lines_that_leaves_ends_the_rest() -> None:
    gate = asyncio.Event()
    async with serving(engine=FakeEngine(max_running=1, text_gate=gate)) as service:
        await service.ready()
        asked = asyncio.create_task(
            service.client.post("/api/score", json={"inputs": [{"prompt": "ab"}] * 5, "variants": [BARE]})
        )
        while service.context.generations.waiting < 4:
            await asyncio.sleep(0)
        asked.cancel()
        while service.context.generations.waiting or service.context.generations.running:
            await asyncio.sleep(0)
        ends = [
            each["data"]["finish_reason"] for each in await service.events() if each["type"] == "GenerationFinished"
        ]
        assert ends == ["cancelled"] * 5


async def test_more_than_may_wait(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.ready()
    monkeypatch.setattr("sae_actor.generations.generations.MOST_SCORED", 3)
    problem = await refused(service, 429, inputs=[{"prompt": "a"}, {"prompt": "b"}])
    assert problem["code"] == "mailbox_full"
    for _ in range(3):
        assert len(await score(service, inputs=[{"prompt": "a"}])) == 2


async def test_a_disk_that_fills_up_between_two_transactions() -> None:
    """What is durable is in the state, and in the stream."""
    from sae_actor.errors import DiskFullError

    log = MemoryLog()
    append, full = log.append, False

    async def failing(drafts: Any, *, expected: int) -> Any:
        if full and len(drafts) < 256:
            raise DiskFullError("the disk is full")
        return await append(drafts, expected=expected)

    log.append = failing  # type: ignore[method-assign]
    async with serving(log) as service:
        await service.ready()
        full = True
        answer = await service.client.post("/api/score", json={"inputs": [{"prompt": "a"}] * 300, "variants": [BARE]})
        assert answer.status_code == 507, answer.text
        events = await log.read(0, 10_000)
        assert len(events) == service.actor.state.position
        assert encode(fold(events)) == encode(service.actor.state)
        full = False
