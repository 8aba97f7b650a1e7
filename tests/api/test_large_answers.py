"""The largest answers, and what else a request can make the service do: the event loop is left to others in between.

Whatever the service does in one round of the loop keeps `/health` waiting, so it is bounded, however much is asked for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine

from .conftest import Running, serving
from .loop_work import LoopWork, loop_work

pytestmark = pytest.mark.anyio

CALLS = 12_000
"""In one round: a few milliseconds."""
ENCODED = 2**20
"""Bytes of JSON in one round."""

VARIANTS = [{"name": "bare", "sae": {"baseline": True}}] + [
    {"name": f"v{n}", "sae": {"steering": [{"feature": n, "strength": 1.0}]}} for n in range(1, 16)
]
LINES = {"accept": "application/x-ndjson"}
TOLD: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "sae": {"top_k_features": 16}}
CHAT = {"messages": [{"role": "user", "content": "x" * 20}], "n": 6, "logprobs": True, "top_logprobs": 20, **TOLD}
COMPLETION = {"prompt": ["x" * 40] * 8, "n": 4, "logprobs": 5, "echo": True, **TOLD, "max_tokens": 20}
ASKED: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "thousands of scores": ("/api/score", {"inputs": [{"prompt": "ab"}] * 64, "variants": VARIANTS}, {}),
    "scores in lines": ("/api/score", {"inputs": [{"prompt": "ab"}] * 64, "variants": VARIANTS}, LINES),
    "scores of long texts": (
        "/api/score",
        {"inputs": [{"prompt": "ab" * 60}] * 8, "variants": VARIANTS[:4], "top_logprobs": 20},
        {},
    ),
    "activations": ("/api/activations", {"inputs": [{"prompt": "x" * 200}] * 12, "top_k": 16}, {}),
    "raw activations": ("/api/activations", {"inputs": [{"prompt": "x" * 200}] * 12, "top_k": 1, "raw": True}, {}),
    "contrast": ("/api/contrast", {"positive": ["abc" * 30] * 64, "negative": ["xyz" * 30] * 64, "top": 1024}, {}),
    "a lens": ("/api/lens", {"prompt": "x" * 200, "top": 50}, {}),
    "a chat": ("/v1/chat/completions", {"model": "default", **CHAT}, {}),
    "a chat that is streamed": ("/v1/chat/completions", {"model": "default", "stream": True, **CHAT}, {}),
    "a chat under a key": ("/v1/chat/completions", {"model": "default", **CHAT}, {"idempotency-key": "one"}),
    "completions": ("/v1/completions", {"model": "default", **COMPLETION}, {}),
    "completions that are streamed": ("/v1/completions", {"model": "default", "stream": True, **COMPLETION}, {}),
    "a comparison": ("/api/compare", {"model": "default", **COMPLETION}, {}),
    "tokens": ("/tokenize", {"prompt": "x" * 100_000}, {}),
}


READ = ("/api/log?limit=5000", "/api/generations?limit=1000", "/api/log/explain?of=many&limit=1000", "/metrics",
        "/api/state?at=100", "/api/log/verify", "/api/log/export")  # fmt: skip


def check(work: LoopWork) -> None:
    assert work.calls <= CALLS, work.longest.most_common(8)
    assert work.encoded <= ENCODED


def serving_many(**settings: Any) -> Any:
    return serving(engine=FakeEngine(max_running=500, max_waiting=500, **settings))


def without_checks(service: Running) -> None:
    """The check of an answer would run on this loop too."""
    service.client.timeout = httpx.Timeout(100)
    service.client.event_hooks = {}


@pytest.mark.parametrize("name", ASKED)
async def test_the_loop_is_left_to_others(name: str) -> None:
    path, body, headers = ASKED[name]
    async with serving_many() as service:
        without_checks(service)
        await service.ready()
        with loop_work() as work:
            answer = await service.client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    check(work)


async def test_what_is_read_of_a_long_log() -> None:
    async with serving_many() as service:
        without_checks(service)
        await service.ready()
        body = {"inputs": [{"prompt": "ab"}] * 64, "variants": VARIANTS, "tag": "many"}
        assert (await service.client.post("/api/score", json=body)).status_code == 200
        for path in READ:
            with loop_work() as work:
                answer = await service.client.get(path)
            assert answer.status_code == 200, answer.text
            check(work)
        assert len((await service.client.get("/api/generations?limit=1000")).json()["generations"]) == 1000


async def test_a_client_that_leaves_ends_a_thousand_scores() -> None:
    """All of them, on record, and a few at a time."""
    async with serving_many(text_gate=asyncio.Event()) as service:
        without_checks(service)
        await service.ready()
        body = {"inputs": [{"prompt": "ab"}] * 64, "variants": VARIANTS}
        asking = asyncio.create_task(service.client.post("/api/score", json=body))
        while len(service.actor.state.generations) < 1024:
            await asyncio.sleep(0.01)
        with loop_work() as work:
            asking.cancel()
            while service.actor.state.generations:
                await asyncio.sleep(0.01)
        check(work)
        ends = [event["data"] for event in await service.events() if event["type"] == "GenerationFinished"]
        assert [end["finish_reason"] for end in ends] == ["cancelled"] * 1024


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        (
            "/api/score",
            {"inputs": [{"prompt": "x" * 250}] * 60, "variants": VARIANTS, "top_logprobs": 20},
            "240000 tokens under all variants, with 21 log probabilities each, are 5040000 numbers; at most 4194304 ",
        ),
        (
            "/v1/completions",
            {"model": "default", "prompt": ["x" * 200] * 64, "max_tokens": 1, "sae": {"top_k_features": 1024}},
            "12800 tokens of prompts and up to 64 more would be told with 13172736 activations, 0 log ",
        ),
        (
            "/v1/completions",
            {
                "model": "default",
                "prompt": ["x" * 200] * 64,
                "n": 16,
                "max_tokens": 1,
                "sae": {"details": True, "details_of": [0] * 64},
            },
            "204800 tokens of prompts and up to 1024 more would be told with 0 activations, 0 log probabilities and "
            "13378560 details",
        ),
    ],
    ids=["scores", "texts", "details"],
)
async def test_an_answer_of_more_numbers_is_refused(
    service: Running, path: str, body: dict[str, Any], detail: str
) -> None:
    """Before any text is begun."""
    await service.ready()
    answer = await service.client.post(path, json=body)
    assert answer.status_code == 400
    assert detail in answer.text
    assert {event["type"] for event in await service.events()} & {"GenerationStarted"} == set()
