"""Fifty who share a real service process: nobody has more than its quota, and everybody gets what it asked for."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from .harness import Process, until
from .test_kill import SCRIPT

pytestmark = pytest.mark.anyio

OPERATOR = "olga's-token"
REQUESTS = 12
"""Of each principal."""


class User(NamedTuple):
    name: str
    running: int
    waiting: int
    tokens: int | None

    @property
    def line(self) -> str:
        limits = f"running={self.running} waiting={self.waiting}"
        limits += f" tokens_per_minute={self.tokens}" if self.tokens else ""
        return f"{self.name} user {hashlib.sha256(self.name.encode()).hexdigest()} {limits}\n"

    @property
    def most(self) -> int:
        return self.running + self.waiting


def users(chance: random.Random) -> list[User]:
    return [
        User(f"user-{n}", chance.randint(1, 3), chance.randint(0, 3), chance.choice([None, 55, 70])) for n in range(50)
    ]


def write(file: Path, *who: User) -> None:
    file.touch(mode=0o600)
    digest = hashlib.sha256(OPERATOR.encode()).hexdigest()
    file.write_text(f"olga operator {digest}\n{''.join(each.line for each in who)}")


def started(tmp_path: Path, *arguments: str) -> Process:
    """With a model and an SAE, whose tokens are in `tokens`, and whose clock goes ahead by `clock`."""
    (tmp_path / "clock").write_text("0")
    process = Process(
        tmp_path / "data",
        "--clock",
        str(tmp_path / "clock"),
        *arguments,
        environment={"SAE_ACTOR_SERVER_TOKENS_FILE": str(tmp_path / "tokens")},
    )
    process.client.headers["authorization"] = f"Bearer {OPERATOR}"
    for key, command in SCRIPT[:3]:
        assert process.send(key, **command)["status"] == "completed"
    return process


def client(process: Process, name: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=process.url, timeout=120, headers={"authorization": f"Bearer {name}"})


def bodies(user: User, chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests that fit its quota: texts, lists of texts, streams, readings and scores."""
    bare = {"baseline": True}
    for _ in range(REQUESTS):
        tokens = chance.randint(1, 6)
        match chance.randrange(5):
            case 0:
                yield "/api/activations", {"inputs": [{"prompt": "ab"}] * chance.randint(1, 4)}
            case 1:
                variants = [{"name": "a", "sae": bare}, {"name": "b", "sae": bare}]
                yield "/api/score", {"inputs": [{"prompt": "ab"}] * 2, "variants": variants}
            case 2:
                prompts = ["abc"] * chance.randint(1, user.most)
                yield "/v1/completions", {"prompt": prompts, "max_tokens": tokens}
            case _:
                yield "/v1/completions", {"prompt": "abcd", "max_tokens": tokens, "stream": True}


class Load:
    """What one of them does: all at once, and again what was refused."""

    def __init__(self, process: Process, user: User, clock: Path, chance: random.Random) -> None:
        self.user, self.chance, self._clock, self._process = user, chance, clock, process
        self._news = asyncio.Event()
        self.refused = Counter[str]()
        self.done = 0

    async def run(self) -> None:
        async with client(self._process, self.user.name) as http:
            await asyncio.gather(*(self._one(http, *each) for each in bodies(self.user, self.chance)))

    async def _one(self, http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        while True:
            news, answer = self._news, await http.post(path, json=body)
            if answer.status_code == 200:
                break
            problem = answer.json()
            problem = problem.get("error", problem)
            assert (answer.status_code, problem["code"]) == (429, "quota_exceeded"), answer.text
            seconds = int(answer.headers["retry-after"])
            assert 1 <= seconds <= 60
            about = "tokens" if "in a minute" in answer.text else "texts"
            self.refused[about] += 1
            if about == "tokens":
                ahead(self._clock, seconds)
            else:
                await news.wait()  # one of its own has to end
        if path.startswith("/v1") and body.get("stream"):
            assert answer.text.rstrip().endswith("data: [DONE]")
        self.done += 1
        self._news, news = asyncio.Event(), self._news
        news.set()


def ahead(clock: Path, seconds: int) -> None:
    new = clock.with_suffix(".new")
    new.write_text(str(float(clock.read_text()) + seconds))
    os.replace(new, clock)


async def watched(http: httpx.AsyncClient, who: dict[str, User], over: asyncio.Event) -> Counter[str]:
    """How many texts of each were seen at most, of those that run; nobody's are more than they may be."""
    most = Counter[str]()
    while not over.is_set():
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for family in text_string_to_metric_families((await http.get("/metrics")).text):
            for sample in family.samples:
                if sample.name == "sae_actor_principal_texts":
                    found[sample.labels["principal"]][sample.labels["state"]] += int(sample.value)
        for name, states in found.items():
            assert states["running"] <= who[name].running, name
            assert states.total() <= who[name].most, name
            most[name] = max(most[name], states["running"])
        await asyncio.sleep(0)
    return most


def by_record(process: Process, who: dict[str, User]) -> Counter[str]:
    """Of the texts on record: none beside more of its own than may be, no minute with more tokens; by principal."""
    begun: dict[str, tuple[str, datetime]] = {}
    open_, texts = Counter[str](), Counter[str]()
    ends: dict[str, list[tuple[datetime, datetime, int]]] = defaultdict(list)
    after = 0
    while events := process.client.get("/api/log", params={"limit": 1000, "after": after}).json()["events"]:
        after = events[-1]["position"]
        for event in events:
            data, name, at = event["data"], event["principal"], datetime.fromisoformat(event["time"])
            if event["type"] == "GenerationStarted":
                begun[data["generation_id"]] = data["kind"], at
                open_[name] += data["kind"] != "score"
                assert open_[name] <= who[name].most, name
            elif event["type"] == "GenerationFinished":
                kind, since = begun[data["generation_id"]]
                open_[name] -= kind != "score"
                texts[name] += 1
                receipt = data["receipt"]
                ends[name].append((since, at, receipt["tokens_prompt"] + receipt["tokens_generated"]))
    assert not open_.total()
    for name, made in ends.items():
        most = who[name].tokens
        for first, _, _ in made if most is not None else ():
            within = [tokens for since, at, tokens in made if first <= since and at < first + timedelta(seconds=60)]
            assert sum(within) <= (most or 0), name
    return texts


@pytest.mark.timeout(300)
async def test_fifty_with_random_loads(tmp_path: Path) -> None:
    chance = random.Random(20)
    everybody = users(chance)
    who = {each.name: each for each in everybody}
    write(tmp_path / "tokens", *everybody)
    with started(tmp_path, "--running", "8") as process:
        loads = [Load(process, each, tmp_path / "clock", random.Random(each.name)) for each in everybody]
        over = asyncio.Event()
        async with client(process, OPERATOR) as operator:
            watching = asyncio.create_task(watched(operator, who, over))
            try:
                await asyncio.gather(*(each.run() for each in loads))
            finally:
                over.set()
            most = await watching
        assert {each.done for each in loads} == {REQUESTS}, "everybody has all that it asked for"
        refused = sum((each.refused for each in loads), Counter[str]())
        assert refused["texts"] > 100, refused
        assert refused["tokens"] > 1, "few: the clock goes ahead for all"
        texts = by_record(process, who)
        assert max(most.values()) >= 2
        metrics = process.client.get("/metrics").text
        for each in loads:
            total = f'principal_refused_total{{principal="{each.user.name}",reason="texts"}} {each.refused["texts"]}.0'
            assert total in metrics
        assert 'state="running"} 1.0' not in metrics
        print(f"{texts.total()} texts of {len(texts)} principals; refused: {dict(refused)}; at once: {dict(most)}")
        process.signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert process.stderr.read_text() == ""


async def test_one_with_a_hundred_waiting_lets_another_go_first(tmp_path: Path) -> None:
    """After the one that runs, at most one more of its own."""
    first, second = User("first", 1, 100, None), User("second", 4, 4, None)
    write(tmp_path / "tokens", first, second)
    body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}
    with started(tmp_path, "--running", "1", "--step-seconds", "0.02") as process:
        async with client(process, "first") as one, client(process, "second") as other:
            many = [asyncio.create_task(one.post("/v1/completions", json=body)) for _ in range(101)]
            async with asyncio.timeout(60):
                while sum(each["type"] == "GenerationStarted" for each in process.events()) < 101:
                    await asyncio.sleep(0.05)
            for _ in range(3):
                assert (await other.post("/v1/completions", json=body)).status_code == 200
            assert not all(each.done() for each in many)
            # Of one text at a time, the order of the ends is that of the beginnings.
            events = [each for each in process.events() if each["type"].startswith("Generation")]
            ends = [each for each in events if each["type"] == "GenerationFinished"]
            asked = [each for each in events if each["type"] == "GenerationStarted" and each["principal"] == "second"]
            for each in asked:
                of = each["data"]["generation_id"]
                (made,) = [end["position"] for end in ends if end["data"]["generation_id"] == of]
                before = [end for end in ends if each["position"] < end["position"] < made]
                assert {end["principal"] for end in before} == {"first"}
                assert len(before) <= 2, "the one that ran, and one more"
            for task in many:
                task.cancel()


def test_sighup_brings_other_quotas(tmp_path: Path) -> None:
    """In force for the next request; what runs goes on, and the change is on record without a number of it."""
    write(tmp_path / "tokens", User("first", 1, 0, None))
    body = {"prompt": "hello", "max_tokens": 2}

    def asked(**fields: Any) -> int:
        headers = {"authorization": "Bearer first"}
        return httpx.post(f"{process.url}/v1/completions", json={**body, **fields}, headers=headers).status_code

    with started(tmp_path) as process:
        assert (asked(), asked(n=2)) == (200, 400)
        headers = {"authorization": "Bearer first"}
        long = {**body, "max_tokens": 200, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{process.url}/v1/completions", json=long, headers=headers, timeout=60) as stream:
            write(tmp_path / "tokens", User("first", 2, 1, None))
            process.signal(signal.SIGHUP)
            until(lambda: asked(n=2) == 200)
            assert "".join(stream.iter_text()).rstrip().endswith("data: [DONE]")
        assert (asked(n=3), asked(n=4)) == (200, 400)
        query = {"types": "SettingsReloaded"}
        (told,) = [each["data"] for each in process.client.get("/api/log", params=query).json()["events"]]
        assert (told["tokens_changed"], told["tokens_added"], told["tokens_removed"]) == (["first"], [], [])
