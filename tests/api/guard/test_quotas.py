"""Quotas of a token's line: `running`, `waiting` and `tokens_per_minute`, on every route that runs the model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, RateLimitError

from sae_actor.config.access import Access, read_line
from tests.fakes.engine import FakeEngine

from ..conftest import Running, serving
from ..routes.test_metrics import numbers
from .test_users import ASK, SECRETS, client, code, grant

pytestmark = pytest.mark.anyio


class Now:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


NOW = Now()


def granted(name: str, role: str, *fields: str) -> Any:
    """As a line of the tokens file says it."""
    return read_line(" ".join((name, role, grant(name, role).digest.hex(), *fields)))


FIELDS = {"uma": ("running=2", "waiting=3"), "ulf": (), "pia": ("presets=calm", "tokens_per_minute=200")}


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    grants = (granted("olga", "operator"), *(granted(name, "user", *fields) for name, fields in FIELDS.items()))
    async with serving(grants=grants, bearer=SECRETS["olga"], engine=FakeEngine(max_running=4),
                       monotonic=NOW) as running:  # fmt: skip
        await running.ready()
        yield running


def held(service: Running) -> asyncio.Event:
    """No text goes on until it is set."""
    service.engine.text_gate = asyncio.Event()
    return service.engine.text_gate


async def seen(service: Running, name: str, running: int, waiting: int) -> None:
    """Waits for it."""
    async with asyncio.timeout(20):
        while True:
            found = await numbers(service)
            states = [found.get(("principal_texts", (name, each))) for each in ("running", "waiting")]
            if states == [running, waiting]:
                return
            await asyncio.sleep(0.01)


def asked(who: httpx.AsyncClient, count: int = 1, **fields: Any) -> list[asyncio.Task[httpx.Response]]:
    return [asyncio.create_task(who.post("/v1/completions", json={**ASK, **fields})) for _ in range(count)]


async def test_what_is_past_running_waits_and_past_waiting_is_refused(service: Running) -> None:
    gate = held(service)
    async with client(service, "uma") as uma, client(service, "ulf") as ulf:
        mine = asked(uma, 5)
        await seen(service, "uma", 2, 3)
        before = service.actor.state.position
        refused = await uma.post("/v1/completions", json=ASK)
        assert code(refused) == (429, "quota_exceeded")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.json()["error"]["message"] == "uma has 5 texts of 5 that may run and wait"
        assert int(refused.headers["retry-after"]) >= 1
        assert service.actor.state.position == before, "nothing of it is on record"
        others = asked(ulf, 2)
        await seen(service, "ulf", 2, 0)
        gate.set()
        assert {(await each).status_code for each in (*mine, *others)} == {200}
        assert (await uma.post("/v1/completions", json=ASK)).status_code == 200
    found = await numbers(service)
    assert found["principal_refused_total", ("uma", "texts")] == 1
    assert found["principal_refused_total", ("ulf", "texts")] == 0
    assert found["principal_tokens_total", ("prompt", "uma")] == 6 * 4
    assert found["principal_tokens_total", ("generated", "uma")] == 6 * 4
    assert {key[1][0] for key in found if key[0] == "principal_texts"} == {"uma", "ulf"}


async def test_when_to_come_back_is_told_by_its_own_pace(service: Running) -> None:
    """A text of it takes seven seconds; those of another, which are quicker, say nothing."""
    gate = held(service)
    async with client(service, "uma") as uma, client(service, "ulf") as ulf:
        first = asked(uma)
        await seen(service, "uma", 1, 0)
        NOW.seconds += 7
        gate.set()
        assert (await first[0]).status_code == 200
        for _ in range(5):
            assert (await ulf.post("/v1/completions", json=ASK)).status_code == 200
        NOW.seconds += 3600
        gate = held(service)
        running = asked(uma, 5)
        await seen(service, "uma", 2, 3)
        assert (await uma.post("/v1/completions", json=ASK)).headers["retry-after"] == "7"
        three = await uma.post("/v1/completions", json={**ASK, "n": 3})
        assert (three.status_code, three.headers["retry-after"]) == (429, "21"), "three of them have to end"
        gate.set()
        assert {(await each).status_code for each in running} == {200}


async def test_a_list_waits_whole_or_never_fits(service: Running) -> None:
    async with client(service, "uma") as uma:
        never = await uma.post("/v1/completions", json={**ASK, "prompt": ["a"] * 6})
        assert code(never) == (400, "bad_request")
        assert never.json()["error"]["message"] == (
            "6 texts in a request; uma may have 5: 2 that run at a time and 3 that wait"
        )
        assert code(await uma.post("/api/compare", json={**ASK, "n": 3})) == (400, "bad_request")
        gate = held(service)
        five = asked(uma, prompt=["a"] * 5)
        await seen(service, "uma", 2, 3)
        gate.set()
        assert len((await five[0]).json()["choices"]) == 5
        assert (await uma.post("/api/compare", json={**ASK, "n": 2})).status_code == 200


async def test_readings_and_scores_have_one_place_however_many_they_read(service: Running) -> None:
    inputs = [{"prompt": letter} for letter in "abcdefgh"]
    bodies = {
        "/api/score": {"inputs": inputs, "variants": [{"name": "bare", "sae": {"baseline": True}}]},
        "/api/activations": {"inputs": inputs},
        "/api/contrast": {"positive": ["a", "b", "c"], "negative": ["d", "e", "f"], "exclude": []},
        "/api/lens": {"prompt": "abc"},
    }
    async with client(service, "uma") as uma:
        for path, body in bodies.items():
            gate = held(service)
            one = asyncio.create_task(uma.post(path, json=body))
            async with asyncio.timeout(20):
                while not sum(each.begun.done() for each in service.engine._streams):
                    await asyncio.sleep(0.01)
            for _ in range(20):
                await asyncio.sleep(0)
            shares = Counter(each.request.share for each in service.engine._streams if each.begun.done())
            assert shares["uma"] <= 2, "no more of them run than texts may"
            assert (await numbers(service))["principal_texts", ("uma", "measuring")] == 1
            rest = asked(uma, 4)
            await seen(service, "uma", 2 - shares["uma"], 2 + shares["uma"])
            assert code(await uma.post(path, json=body)) == (429, "quota_exceeded")
            gate.set()
            answers = await asyncio.gather(one, *rest)
            assert {each.status_code for each in answers} == {200}, path


async def test_tokens_of_a_minute(service: Running) -> None:
    """Prompt and new ones; what was reserved and not made is given back."""
    NOW.seconds += 3600
    async with client(service, "pia") as pia:
        bare = {**ASK, "prompt": "x" * 50, "sae": {"baseline": True}}
        service.engine.ends_after = 10
        assert (await pia.post("/v1/completions", json={**bare, "max_tokens": 150})).status_code == 200
        service.engine.ends_after = None
        NOW.seconds += 20
        assert (await pia.post("/api/activations", json={"prompt": "x" * 60})).status_code == 200
        refused = await pia.post("/v1/completions", json={**bare, "max_tokens": 80})
        assert code(refused) == (429, "quota_exceeded")
        made = (await numbers(service))["principal_tokens_total", ("generated", "pia")]
        assert f"has used or reserved {110 + made:g} tokens of 200 in a minute; this takes 130" in refused.text
        assert refused.headers["retry-after"] == "40", "twenty seconds are over of the first one's minute"
        NOW.seconds += 39
        again = await pia.post("/v1/completions", json={**bare, "max_tokens": 80})
        assert (again.status_code, again.headers["retry-after"]) == (429, "1")
        NOW.seconds += 1
        assert (await pia.post("/v1/completions", json={**bare, "max_tokens": 80})).status_code == 200
        never = await pia.post("/v1/completions", json={**bare, "max_tokens": 151})
        assert code(never) == (400, "bad_request")
        assert "201 tokens, with all that may be made; pia may have 200 in a minute" in never.text
    assert (await numbers(service))["principal_refused_total", ("pia", "tokens")] == 2


async def test_every_route_counts_its_tokens(service: Running) -> None:
    bare = {"baseline": True}
    texts = {"positive": ["abc", "def"], "negative": ["gh"], "exclude": []}
    asks: dict[str, tuple[dict[str, Any], int, int]] = {
        "/v1/completions": ({**ASK, "sae": bare, "n": 2}, 8, 8),
        "/v1/chat/completions": ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "sae": bare}, -1, 4),
        "/v1/responses": ({"input": "a", "max_output_tokens": 5, "sae": bare}, -1, 5),
        "/api/score": ({"inputs": [{"prompt": "ab", "continuation": "cde"}],
                        "variants": [{"name": "a", "sae": bare}, {"name": "b", "sae": bare}]}, 10, 0),
        "/api/activations": ({"inputs": [{"prompt": "ab"}, {"prompt": "cde"}]}, 5, 0),
        "/api/lens": ({"prompt": "abc"}, 3, 0),
        "/api/contrast": (texts, 8, 0),
    }  # fmt: skip
    async with client(service, "ulf") as ulf:
        for path, (body, prompt, generated) in asks.items():
            before = await numbers(service)
            answer = await ulf.post(path, json=body)
            assert answer.status_code == 200, answer.text
            after = await numbers(service)
            moved = [
                after["principal_tokens_total", (kind, "ulf")]
                - before.get(("principal_tokens_total", (kind, "ulf")), 0)
                for kind in ("prompt", "generated")
            ]
            if prompt < 0:
                usage = answer.json()["usage"]
                assert moved == [usage.get("prompt_tokens", usage.get("input_tokens")), generated], path
            else:
                assert moved == [prompt, generated], path
    direction = {"name": "d", "hook_point": {"kind": "resid_post", "layer": 1}, "positive": ["ab"], "negative": ["cde"]}
    before = await numbers(service)
    assert (await service.client.post("/api/directions", json=direction)).status_code < 300
    after = await numbers(service)
    key = ("principal_tokens_total", ("prompt", "olga"))
    assert after[key] - before.get(key, 0) == 5


async def test_a_chat_without_a_limit_gets_its_part_of_the_minute() -> None:
    line = granted("uma", "user", "running=4", "tokens_per_minute=120")
    async with serving(grants=(granted("olga", "operator"), line), bearer=SECRETS["olga"]) as service:
        await service.ready()
        chat = {"messages": [{"role": "user", "content": "a"}]}
        async with client(service, "uma") as uma:
            answer = (await uma.post("/v1/chat/completions", json=chat)).json()
            assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 30)
        (started,) = [each for each in await service.events() if each["type"] == "GenerationStarted"]
        assert started["data"]["sampling"]["max_tokens"] == 30


async def test_both_answers_of_a_comparison_without_a_limit_fit_into_the_minute() -> None:
    line = granted("uma", "user", "running=1", "tokens_per_minute=120")
    async with serving(grants=(granted("olga", "operator"), line), bearer=SECRETS["olga"]) as service:
        await service.ready()
        chat = {"messages": [{"role": "user", "content": "a"}]}
        async with client(service, "uma") as uma:
            answer = await uma.post("/api/compare", json=chat)
        assert answer.status_code == 200, answer.text
        usages = [answer.json()[name]["usage"] for name in ("steered", "baseline")]
        assert {each["prompt_tokens"] + each["completion_tokens"] for each in usages} == {60}


async def test_who_leaves_leaves_nothing_behind(service: Running) -> None:
    held(service)
    async with client(service, "uma") as uma:
        for each in asked(uma, 5):
            await asyncio.sleep(0.01)
            each.cancel()
        service.engine.text_gate = None
        async with asyncio.timeout(20):
            while service.context.generations.running or service.context.generations.waiting:
                await asyncio.sleep(0.01)
        assert (await uma.post("/v1/completions", json={**ASK, "prompt": ["a"] * 5})).status_code == 200
        bad = {**ASK, "sae": {"steering": [{"feature": 10**6, "strength": 1.0}]}}
        for _ in range(10):
            assert (await uma.post("/v1/completions", json=bad)).status_code == 422
    ledger = service.context.generations.quotas.ledger("uma")
    assert (ledger.taken, ledger.reserved) == (0, 0)


async def test_what_is_begun_ends_with_its_token_also_while_labels_are_looked_for(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(service)
    asked_for, (uma,) = asyncio.Event(), [each for each in service.context.access.grants if each.name == "uma"]

    async def hangs(sae_id: str) -> Mapping[int, str]:
        asked_for.set()
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(service.context.features, "labels", hangs)
    async with client(service, "uma") as who:
        (text,) = asked(who, sae={"details": True})
        await asked_for.wait()
        service.context.sessions.withdraw([uma])
        assert (await text).status_code == 401
    async with asyncio.timeout(20):
        await service.context.generations.idle()
    assert service.context.generations.quotas.ledger("uma").reserved == 0


async def test_an_unmodified_client_comes_back_when_it_is_told(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first wait is the one that it was told; then there is room."""
    NOW.seconds += 3600
    waits: list[float] = []

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        NOW.seconds += seconds

    monkeypatch.setattr("openai._base_client.anyio.sleep", slept)
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key=SECRETS["pia"]) as client:
        ask = {"model": "default", "prompt": "x" * 50, "max_tokens": 80, "extra_body": {"sae": {"baseline": True}}}
        for _ in range(3):
            made = await client.completions.create(**ask)  # type: ignore[call-overload]
            assert made.usage.completion_tokens == 80
        assert waits == [60, 60]
        with pytest.raises(RateLimitError) as refused:
            await client.with_options(max_retries=0).completions.create(**ask)  # type: ignore[call-overload]
        assert refused.value.code == "quota_exceeded"


async def test_other_quotas_hold_at_once(service: Running) -> None:
    """As SIGHUP brings them: for what waits in the engine too, and without an end to what runs."""
    gate = held(service)
    async with client(service, "uma") as uma:
        mine = asked(uma, 5)
        await seen(service, "uma", 2, 3)
        service.context.use(Access((granted("olga", "operator"), granted("uma", "user", "running=3", "waiting=9"))))
        await seen(service, "uma", 3, 2)
        mine += asked(uma)
        await seen(service, "uma", 3, 3)
        service.context.use(Access((granted("olga", "operator"), granted("uma", "user", "running=1", "waiting=1"))))
        assert code(await uma.post("/v1/completions", json=ASK)) == (429, "quota_exceeded")
        gate.set()
        assert {(await each).status_code for each in mine} == {200}
        assert (await uma.post("/v1/completions", json={**ASK, "n": 2})).status_code == 200
