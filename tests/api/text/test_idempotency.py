"""Idempotency keys on texts: made once, for whoever asks, and answered again."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import httpx
import pytest

from sae_actor.api.kept_answers import KEPT_ANSWERS, KEPT_SECONDS, KeptAnswers
from sae_actor.config.access import Grant, digest_of
from sae_actor.errors import OutOfMemoryError
from sae_actor.ports import GenerationRequest, GenerationStream
from tests.fakes.log import MemoryLog

from ..conftest import MODEL, Running, serving

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "default", "prompt": "hello", "max_tokens": 5, "temperature": 1.0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
KEY = {"Idempotency-Key": "k1"}


async def post(service: Running, ask: dict[str, Any] = ASK, key: str = "k1", path: str = "") -> httpx.Response:
    path = path or ("/v1/chat/completions" if "messages" in ask else "/v1/completions")
    return await service.client.post(path, json=ask, headers={"Idempotency-Key": key})


async def started(service: Running) -> list[dict[str, Any]]:
    return [event for event in await service.events() if event["type"] == "GenerationStarted"]


async def running(service: Running, count: int) -> None:
    while len(service.engine._streams) != count:
        await asyncio.sleep(0.01)


class Clock:
    def __init__(self, service: Running) -> None:
        self.seconds = 0.0
        service.context.kept = KeptAnswers(clock=lambda: self.seconds)


async def test_the_key_is_on_record(service: Running) -> None:
    await service.ready()
    answer = await post(service)
    assert answer.status_code == 200
    (event,) = await started(service)
    assert len(event["data"]["request_sha256"]) == 64
    assert len(event["data"]["request_salt"]) == 32
    outcome = (await service.client.get(f"/api/commands/{event['command_id']}")).json()
    assert (outcome["status"], outcome["error"]) == ("completed", None)
    assert [each["type"] for each in outcome["events"]] == ["GenerationStarted", "GenerationFinished"]
    assert outcome["events"][0]["data"]["generation_id"] == answer.json()["id"]
    await service.client.post("/v1/completions", json=ASK)
    bare = (await started(service))[-1]
    assert (bare["command_id"], bare["data"]["request_sha256"]) == (None, None)


@pytest.mark.parametrize("ask", [ASK, CHAT, {**ASK, "prompt": ["a", "b"]}], ids=["completion", "chat", "two prompts"])
async def test_the_same_answer_from_memory(service: Running, ask: dict[str, Any]) -> None:
    await service.ready()
    first = await post(service, ask)
    position = service.actor.state.position
    again = await post(service, dict(reversed(ask.items())))
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["etag"] == first.headers["etag"]
    assert service.actor.state.position == position
    other = await post(service, ask, "k2")
    assert other.json()["id"] != first.json()["id"]


async def test_a_repetition_joins_what_is_made(service: Running) -> None:
    await service.ready()
    service.engine.text_gate = asyncio.Event()
    both = [asyncio.create_task(post(service)) for _ in range(2)]
    await running(service, 1)
    (event,) = await started(service)
    status = (await service.client.get(f"/api/commands/{event['command_id']}")).json()["status"]
    assert status == "accepted"
    waiting = asyncio.create_task(
        service.client.get(f"/api/commands/{event['command_id']}", headers={"Prefer": "wait=10"})
    )
    service.engine.text_gate.set()
    answers = await asyncio.gather(*both)
    assert answers[0].content == answers[1].content
    assert (await waiting).json()["status"] == "completed"
    assert len(await started(service)) == 1


@pytest.mark.parametrize("leaving", [(0,), (1,), (0, 1)])
async def test_who_leaves_cancels_nothing(service: Running, leaving: tuple[int, ...]) -> None:
    await service.ready()
    service.engine.text_gate = asyncio.Event()
    both = [asyncio.create_task(post(service)) for _ in range(2)]
    await running(service, 1)
    for each in leaving:
        both[each].cancel()
    await asyncio.sleep(0.05)
    service.engine.text_gate.set()
    await running(service, 0)
    again = await post(service)
    assert (again.status_code, again.json()["choices"][0]["finish_reason"]) == (200, "length")
    for each in {0, 1}.difference(leaving):
        assert (await both[each]).content == again.content
    assert len(await started(service)) == 1


async def test_an_answer_is_kept_for_ten_minutes(service: Running) -> None:
    await service.ready()
    clock = Clock(service)
    first = await post(service)
    clock.seconds += KEPT_SECONDS - 1
    assert (await post(service)).content == first.content
    clock.seconds += 1
    for _ in range(2):
        gone = await post(service)
        error = gone.json()["error"]
        assert (gone.status_code, error["code"]) == (409, "answer_gone")
        assert first.json()["id"] in error["message"]
        assert error["generation_id"] == first.json()["id"]
    assert len(await started(service)) == 1


async def test_so_many_answers_are_kept(service: Running) -> None:
    await service.ready()
    kept = service.context.kept

    async def make() -> Any:
        return await made

    made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    first = await post(service)
    made.set_result(httpx_like(first))
    for number in range(KEPT_ANSWERS - 1):
        await kept.answer(f"other {number}", "", make)
    assert (await post(service)).content == first.content
    await kept.answer("one more", "", make)
    assert (await post(service)).status_code == 409


def httpx_like(answer: httpx.Response) -> Any:
    from litestar import Response

    return Response(content=answer.content, media_type="application/json")


async def test_another_request_under_the_key(service: Running) -> None:
    sae_id = await service.ready()
    assert (await post(service)).status_code == 200
    clock = Clock(service)  # whether it is in memory or in the log
    for _ in range(2):
        for other in ({**ASK, "max_tokens": 6}, CHAT, {**ASK, "prompt": ["hello"]}):
            answer = await post(service, other)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
        clock.seconds += KEPT_SECONDS
    steer = {"type": "Steer", "sae_id": sae_id, "features": []}
    answer = await service.client.post("/api/commands", json=steer, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert (await service.client.post("/api/commands", json=steer, headers={"Idempotency-Key": "c"})).status_code == 202
    answer = await post(service, key="c")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("ask", [ASK, CHAT])
async def test_a_stream_takes_no_key(service: Running, ask: dict[str, Any]) -> None:
    await service.ready()
    answer = await post(service, {**ask, "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert (await post(service, ask, "x" * 129)).status_code == 400
    assert await started(service) == []


async def test_a_refusal_is_not_remembered(service: Running) -> None:
    assert (await post(service)).json()["error"]["code"] == "model_not_loaded"
    await service.command("LoadModel", model=MODEL)
    assert (await post(service, {**ASK, "max_tokens": 10_000})).status_code == 400
    service.engine.max_running, service.context.generations.places = 1, 0
    assert (await post(service)).status_code == 429
    service.context.generations.places = None
    assert (await post(service)).status_code == 200


@pytest.mark.parametrize("failing", [0, 1])
async def test_the_failure_of_one_choice_is_the_answer(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(record_text=True) as service:
        await service.ready()
        clock, generate, asked = Clock(service), service.engine.generate, count()

        def generates(request: GenerationRequest) -> GenerationStream:
            if next(asked) == failing:
                raise OutOfMemoryError("no room for this one")
            return generate(request)

        monkeypatch.setattr(service.engine, "generate", generates)
        service.engine.text_gate = asyncio.Event()
        for _ in range(2):
            answer = await post(service, {**ASK, "n": 2})
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "out_of_memory")
            clock.seconds += KEPT_SECONDS
        assert len(await started(service)) == 2


async def test_a_failure_is_the_answer(service: Running) -> None:
    await service.ready()
    clock = Clock(service)
    service.context.generations.deadline_seconds = 0.1
    service.engine.text_gate = asyncio.Event()
    first = await post(service)
    assert (first.status_code, first.json()["error"]["code"]) == (504, "deadline_exceeded")
    service.engine.text_gate = None
    for _ in range(2):
        again = await post(service)
        assert (again.status_code, again.json()["error"]) == (504, first.json()["error"])
        clock.seconds += KEPT_SECONDS
    assert len(await started(service)) == 1


async def test_keys_belong_to_their_principal() -> None:
    grants = tuple(Grant(name, "operator", digest_of(name.encode())) for name in ("olga", "ada"))
    async with serving(grants=grants, bearer="olga") as service:
        await service.ready()
        first = await post(service)
        service.client.headers["authorization"] = "Bearer ada"
        other = await post(service)
        assert (first.status_code, other.status_code) == (200, 200)
        assert first.json()["id"] != other.json()["id"]


@pytest.mark.parametrize("record_text", [True, False])
@pytest.mark.parametrize("ask", [ASK, CHAT, {**ASK, "prompt": ["a", "b"]}], ids=["completion", "chat", "two prompts"])
async def test_after_a_restart(record_text: bool, ask: dict[str, Any]) -> None:
    log = MemoryLog()
    edit = {"feature": 3, "strength": 7.0}
    async with serving(log, record_text=record_text) as service:
        sae_id = await service.ready()
        await service.command("Steer", sae_id=sae_id, features=[edit])
        first = await post(service, ask)
        assert first.json()["sae"]["receipt"]["tokens_edited"] > 0
    async with serving(log, record_text=record_text) as service:
        position = service.actor.state.position
        other = await post(service, {**ask, "max_tokens": 6})
        assert other.status_code == 422
        for _ in range(2):
            again = await post(service, ask)
            if record_text:
                assert (again.status_code, again.json()) == (200, first.json())
            else:
                assert (again.status_code, again.json()["error"]["generation_id"]) == (409, first.json()["id"])
        assert not [e for e in await service.events() if e["position"] > position and e["type"] == "GenerationStarted"]


@pytest.mark.parametrize(
    "more",
    [{"logprobs": 1}, {"echo": True}, {"sae": {"top_k_features": 2}}, {"sae": {"details": True}}, {"sae": {"steering": [
        {"feature": 3, "strength": 1.0, "exclude": []}]}}],
)  # fmt: skip
async def test_what_the_log_does_not_have_is_gone(more: dict[str, Any]) -> None:
    async with serving(record_text=True) as service:
        await service.ready()
        clock = Clock(service)
        ask = {**ASK, **more}
        first = await post(service, ask)
        assert (await post(service, ask)).content == first.content
        clock.seconds += KEPT_SECONDS
        assert (await post(service, ask)).json()["error"]["code"] == "answer_gone"
