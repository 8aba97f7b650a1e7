"""Several prompts in one request, models by name, and what is promised of a text."""

from __future__ import annotations

import asyncio

import pytest

from ..conftest import MODEL, Running
from .test_routes import ASK, chunks

pytestmark = pytest.mark.anyio

PROMPTS = ["Once upon a time", "In the beginning", "It was a dark night"]


async def alone(service: Running, prompt: str) -> str:
    answer = await service.client.post("/v1/completions", json={**ASK, "prompt": prompt})
    text: str = answer.json()["choices"][0]["text"]
    return text


@pytest.mark.parametrize("ids", [False, True])
async def test_each_is_a_generation_of_its_own(service: Running, ids: bool) -> None:
    await service.ready()
    texts = [await alone(service, prompt) for prompt in PROMPTS]
    prompts = [list(prompt.encode()) for prompt in PROMPTS] if ids else PROMPTS
    answer = (await service.client.post("/v1/completions", json={**ASK, "prompt": prompts, "echo": True})).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in answer["choices"]] == [p + t for p, t in zip(PROMPTS, texts, strict=True)]
    read = sum(map(len, PROMPTS))
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": 24, "total_tokens": read + 24}
    assert answer["sae"] == answer["choices"][0]["sae"]
    assert answer["id"] == answer["sae"]["generation_id"]
    on_record = [event["data"] for event in await service.events() if event["type"] == "GenerationFinished"]
    assert {choice["sae"]["generation_id"] for choice in answer["choices"]} == {
        each["generation_id"] for each in on_record[-3:]
    }
    for choice, prompt in zip(answer["choices"], PROMPTS, strict=True):
        assert choice["sae"]["receipt"]["tokens_prompt"] == len(prompt)


@pytest.mark.parametrize("usage", [False, True])
async def test_streamed_side_by_side(service: Running, usage: bool) -> None:
    await service.ready()
    texts = [await alone(service, prompt) for prompt in PROMPTS]
    service.engine.step_seconds = 0.01
    body = {**ASK, "prompt": PROMPTS, **({"stream_options": {"include_usage": True}} if usage else {})}
    found = await chunks(service, "/v1/completions", body)
    assert len({each["id"] for each in found}) == 1
    parts = [choice for each in found for choice in each["choices"]]
    for index, text in enumerate(texts):
        mine = [part for part in parts if part["index"] == index]
        assert "".join(part["text"] for part in mine) == text
        assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + ["length"]
        assert mine[-1]["sae"]["receipt"]["tokens_generated"] == 8
    assert found[-1]["sae"]["generation_id"] == found[0]["id"]
    assert ("usage" in found[-1]) is usage
    first = [part["index"] for part in parts][:6]
    assert first != sorted(first), "they come side by side"


async def test_what_fails_ends_them_all(service: Running) -> None:
    await service.ready()
    service.engine.max_running, service.engine.max_waiting, service.engine.step_seconds = 1, 1, 0.25
    for stream in (False, True):
        answer = await service.client.post("/v1/completions", json={**ASK, "prompt": PROMPTS, "stream": stream})
        assert stream or (answer.status_code, answer.json()["error"]["code"]) == (429, "mailbox_full")
        while service.actor.state.generations:
            await asyncio.sleep(0.01)
    whole = {**ASK, "prompt": PROMPTS, "max_tokens": 239}
    before = len(await service.events())
    refused = await service.client.post("/v1/completions", json=whole)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert len(await service.events()) == before, "none has begun"


async def test_a_model_by_its_name(service: Running) -> None:
    assert (await service.client.get(f"/v1/models/{MODEL}")).status_code == 404
    await service.ready()
    for name in (MODEL, "default"):
        assert (await service.client.get(f"/v1/models/{name}")).json()["id"] == MODEL
    missing = await service.client.get("/v1/models/gpt-5")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("name", ["org/model", "/models/some/model"])
@pytest.mark.parametrize("quoted", [False, True])
async def test_a_model_whose_id_is_a_path(service: Running, name: str, quoted: bool) -> None:
    await service.command("LoadModel", model=name)
    path = name.replace("/", "%2F") if quoted else name
    assert (await service.client.get(f"/v1/models/{path}")).json()["id"] == "model"


async def test_deterministic_is_promised_or_refused(service: Running) -> None:
    await service.ready(attach=False)
    body = {**ASK, "temperature": 1, "seed": 3, "sae": {"deterministic": True}}
    answers = [(await service.client.post("/v1/completions", json=body)).json() for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]
    started = [event for event in await service.events() if event["type"] == "GenerationStarted"]
    assert [event["data"]["deterministic"] for event in started] == [True, True]
    await service.command("LoadModel", model=MODEL, dtype="bfloat16")
    refused = await service.client.post("/v1/completions", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "sae_unsupported", "sae.deterministic")


async def test_steering_by_role(service: Running) -> None:
    sae_id = await service.ready()
    edit = {"feature": 1, "strength": 3, "positions": {"role": "user"}, "exclude": ["template"]}
    await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
    messages = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "Hello"}]
    asked = {"messages": messages, "max_tokens": 4}
    answer = await service.client.post("/v1/chat/completions", json=asked)
    receipt = answer.json()["sae"]["receipt"]
    assert (receipt["tokens_edited"], receipt["tokens_excluded"]) == (5, 7)
    started, finished = (await service.events())[-2:]
    assert [turn["role"] for turn in started["data"]["turns"]] == ["system", "user"]
    assert finished["data"]["edited"] == [[17, 22]]
    refused = await service.client.post("/v1/completions", json=ASK)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "positions")
    own = {**ASK, "sae": {"steering": [{"feature": 1, "strength": 3, "exclude": ["template", "special"]}]}}
    assert (await service.client.post("/v1/completions", json=own)).json()["sae"]["receipt"]["tokens_edited"] == 23
    read = {"messages": messages, "sae": {"baseline": False}}
    assert (await service.client.post("/api/activations", json=read)).status_code == 200
    plain = await service.client.post("/api/activations", json={"prompt": "a", "sae": {"baseline": False}})
    assert (plain.status_code, plain.json()["param"]) == (400, "positions")


async def test_a_text_that_can_never_fit_is_refused_with_both_numbers(service: Running) -> None:
    service.engine.cache_positions = 64
    await service.ready()
    capabilities = (await service.client.get("/api/capabilities")).json()
    assert capabilities["model"]["cache_positions"] == 64
    prompt = "x" * 40
    fits = await service.client.post("/v1/completions", json={"model": "default", "prompt": prompt, "max_tokens": 25})
    assert fits.status_code == 200
    answer = await service.client.post("/v1/completions", json={"model": "default", "prompt": prompt, "max_tokens": 26})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "max_tokens"
    assert "65 positions" in error["message"]
    assert "64" in error["message"]
    assert not [each for each in (await service.events())[-1:] if each["type"] == "GenerationStarted"]


async def test_two_lists_that_do_not_fit_beside_each_other_both_come(service: Running) -> None:
    """Of 96 places each takes 64: the second waits whole, and nothing of either is cancelled."""
    await service.ready()
    service.context.generations.places = 96
    body = {**ASK, "prompt": [f"{n} and" for n in range(64)], "max_tokens": 2}
    both = await asyncio.gather(*(service.client.post("/v1/completions", json=body) for _ in range(2)))
    assert [answer.status_code for answer in both] == [200, 200]
    assert [len(answer.json()["choices"]) for answer in both] == [64, 64]
    ends = [event["data"] for event in await service.events() if event["type"] == "GenerationFinished"]
    assert [end["finish_reason"] for end in ends] == ["length"] * 128
    positions = [
        [event["position"] for event in await service.events() if event["type"] == "GenerationStarted"][at : at + 64]
        for at in (0, 64)
    ]
    assert [each[-1] - each[0] for each in positions] == [63, 63], "each began as one"


async def test_what_can_never_fit_is_told_both_numbers(service: Running) -> None:
    await service.ready()
    service.context.generations.places = 96
    before = len(await service.events())
    refused = await service.client.post("/v1/completions", json={**ASK, "prompt": ["a"] * 64, "n": 2, "temperature": 1})
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        400,
        "128 texts in a request; at most 96 are made at once",
    )
    assert len(await service.events()) == before


async def test_a_comparison_of_49_prompts_in_96_places(service: Running) -> None:
    await service.ready()
    service.context.generations.places = 96
    body = {**ASK, "prompt": [f"{n} and" for n in range(49)], "max_tokens": 2}
    told = (await service.client.post("/api/compare", json=body)).json()
    assert [len(told[branch]["choices"]) for branch in ("steered", "baseline")] == [49, 49]
