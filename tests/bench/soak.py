"""A mixed load on the demo's model for some minutes, and what must hold all the while.

    python -m tests.bench.soak [--minutes 5] [--threads 1] [--clients 1]

A real service process with the demo's model and SAE. Its clients stream chats, send lists of prompts, long prompts and
deterministic texts, score, read activations, contrast, compare, look through a lens, steer, detach and attach again,
follow the events, read the log and back it up, and leave in the middle. Each kind of request has `--clients` clients,
one request after the other.

Checked: no answer is 5xx but 503 with Retry-After, and none 4xx but 429 with it, and 409 while the SAE is detached;
each receipt says what was asked for; the same deterministic request makes the same text; at the end each beginning on
record has its end, the chain is whole, and open files have not grown; nor memory, in ten minutes or more: a shorter run
shows how caches fill. The exit code counts what did not hold. `/health` is printed too, but not checked: that is
`bench_health`, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from sae_actor.demo.model import prepare_model
from tests.bench.bench_health import prepared_service
from tests.bench.bench_turns import quantiles
from tests.process.harness import Process

EDIT = {"feature": 584, "strength": 40.0, "exclude": []}
MOST_GROWTH = 4.0
"""MB a minute in the second half: caches fill in the first."""
SETTLED_MINUTES = 10.0
"""Memory is not checked in a shorter run."""
MOST_FILES = 8
"""More open files at the end than at rest."""


class Seen:
    """What was answered."""

    def __init__(self) -> None:
        self.statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.receipts = 0
        self.wrong: list[str] = []

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def answer(self, kind: str, answer: httpx.Response) -> bool:
        """Whether it is one to look at."""
        status = answer.status_code
        self.statuses[kind][status] += 1
        waits = int(answer.headers.get("retry-after", "0")) > 0
        detached = status in (409, 503) and kind not in ("reads", "health")
        good = status < 400 or (status in (429, 503) and waits) or detached
        self.check(good, "" if good else f"{kind}: {status} {answer.text[:200]}")
        return status < 400

    def receipt(self, kind: str, sae: dict[str, Any], prompt: int, made: int, *, steered: bool | None) -> None:
        """steered: with an edit of its own at every position; None: as the server is steered at the moment."""
        self.receipts += 1
        told = sae["receipt"]
        edited = {True: prompt + made - 1, False: 0, None: told["tokens_edited"]}[steered]
        expected = (prompt, made, edited)
        found = (told["tokens_prompt"], told["tokens_generated"], told["tokens_edited"])
        gone = sae["finish_reason"] == "intervention_removed"
        self.check(gone or found == expected, f"{kind}: the receipt says {found}, not {expected}")


class Load:
    """The clients of one service."""

    def __init__(self, service: Process, sae_id: str, seen: Seen, until: float) -> None:
        self.seen, self._until, self._sae_id = seen, until, sae_id
        limits = httpx.Limits(max_connections=200)
        self._client = httpx.AsyncClient(base_url=service.url, timeout=600, limits=limits)
        self._texts: dict[str, str] = {}

    async def run(self, clients: int) -> None:
        kinds: list[Callable[[int], Awaitable[None]]] = [
            self.chat, self.text, self.listed, self.long, self.deterministic, self.score, self.activations,
            self.contrast, self.lens, self.compare, self.leaves, self.follows, self.reads, self.health,
        ]  # fmt: skip
        async with self._client, asyncio.TaskGroup() as group:
            for kind in kinds:
                for _ in range(clients):
                    group.create_task(self._again(kind))
            group.create_task(self._again(self.commands))

    async def _again(self, kind: Callable[[int], Awaitable[None]]) -> None:
        for n in itertools.count():
            if time.monotonic() > self._until:
                return
            began = time.perf_counter()
            await kind(n)
            self.seen.times[kind.__name__].append((time.perf_counter() - began) * 1e3)

    async def _post(self, kind: str, path: str, **body: Any) -> Any:
        answer = await self._client.post(path, json=body)
        if self.seen.answer(kind, answer):
            return answer.json()
        await asyncio.sleep(0.5)  # not at once again
        return None

    async def chat(self, n: int) -> None:
        body = {"messages": [{"role": "user", "content": f"Tell me of {n}."}], "max_tokens": 24, "stream": True}
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code >= 400:
                await answer.aread()
            lines = [line async for line in answer.aiter_lines()] if answer.status_code < 400 else []
        if self.seen.answer("chat", answer):
            self.seen.check(lines[-2:-1] == ["data: [DONE]"] or "error" in "".join(lines[-3:]), "chat: no end")

    async def text(self, n: int) -> None:
        steered = n % 2 == 0
        own: dict[str, Any] = {"steering": [EDIT]} if steered else {"baseline": True}
        told = await self._post("text", "/v1/completions", prompt=f"Number {n} is", max_tokens=12, sae=own)
        if told is not None:
            usage = told["usage"]
            self.seen.receipt("text", told["sae"], usage["prompt_tokens"], usage["completion_tokens"], steered=steered)

    async def listed(self, n: int) -> None:
        prompts = [f"{n} and {each}" for each in range(24)]
        told = await self._post("listed", "/v1/completions", prompt=prompts, max_tokens=2, sae={"baseline": True})
        if told is not None:
            self.seen.check(len(told["choices"]) == len(prompts), "listed: a choice is missing")
            made = sum(each["sae"]["receipt"]["tokens_generated"] for each in told["choices"])
            self.seen.check(made == told["usage"]["completion_tokens"], "listed: tokens and receipts differ")

    async def long(self, n: int) -> None:
        prompt = [1000 + (n * 7 + each) % 20_000 for each in range(1500)]
        told = await self._post(
            "long", "/v1/completions", prompt=prompt, max_tokens=2, ignore_eos=True, sae={"steering": [EDIT]}
        )
        if told is not None:
            self.seen.receipt("long", told["sae"], 1500, 2, steered=True)

    async def deterministic(self, n: int) -> None:
        prompt = f"Once {n % 3}"
        own = {"baseline": True, "deterministic": True}
        told = await self._post("deterministic", "/v1/completions", prompt=prompt, max_tokens=12, sae=own, seed=1)
        if told is not None:
            text = told["choices"][0]["text"]
            self.seen.check(self._texts.setdefault(prompt, text) == text, f"deterministic: {prompt!r} differs")

    async def score(self, n: int) -> None:
        inputs = [{"prompt": f"Number {n} and {each}"} for each in range(64)]
        variants = [{"name": "bare", "sae": {"baseline": True}}]
        told = await self._post("score", "/api/score", inputs=inputs, variants=variants)
        if told is not None:
            for each in told["results"]:
                self.seen.receipt("score", each["sae"], len(each["token_ids"]), 0, steered=False)

    async def activations(self, n: int) -> None:
        ids = [1000 + (n + each) % 20_000 for each in range(256)]
        told = await self._post("activations", "/api/activations", token_ids=ids, top_k=200)
        self.seen.check(told is None or len(told["features"]) == 256, "activations: rows are missing")

    async def contrast(self, n: int) -> None:
        await self._post("contrast", "/api/contrast", positive=[f"I love {n}"] * 4, negative=[f"I hate {n}"] * 4)

    async def lens(self, n: int) -> None:
        await self._post("lens", "/api/lens", prompt=f"The capital of {n} is", top=20)

    async def compare(self, n: int) -> None:
        told = await self._post("compare", "/api/compare", prompt=f"One {n}", max_tokens=4, sae={"steering": [EDIT]})
        if told is not None:
            for branch, steered in (("steered", True), ("baseline", False)):
                usage = told[branch]["usage"]
                counts = usage["prompt_tokens"], usage["completion_tokens"]
                self.seen.receipt("compare", told[branch]["sae"], *counts, steered=steered)

    async def leaves(self, n: int) -> None:
        """In the middle of a stream, of a long prompt, of many scores."""
        path, body = [
            ("/v1/completions", {"prompt": "On and on", "max_tokens": 400, "ignore_eos": True}),
            ("/v1/completions", {"prompt": [1000 + each for each in range(1800)], "max_tokens": 1}),
            ("/api/score", {"inputs": [{"prompt": f"{n} {each}"} for each in range(300)]}),
        ][n % 3]
        try:
            answer = await self._client.post(path, json=body, timeout=httpx.Timeout(60, read=2.0))
        except httpx.ReadTimeout:
            return
        self.seen.answer("leaves", answer)

    async def follows(self, _: int) -> None:
        async with self._client.stream("GET", "/api/events") as answer:
            lines = answer.aiter_lines()
            for _ in range(200):
                await anext(lines)
        self.seen.answer("follows", answer)

    async def reads(self, n: int) -> None:
        paths = ("/api/state", "/api/log?limit=5000", "/api/generations?limit=1000", "/metrics", "/api/log/backup",
                 "/api/log/verify?full=false", "/ready", f"/api/saes/{self._sae_id}/features/{n % 2000}")  # fmt: skip
        answer = await self._client.get(paths[n % len(paths)])
        self.seen.answer("features" if "features" in str(answer.url) else "reads", answer)
        await asyncio.sleep(0.1)

    async def health(self, _: int) -> None:
        self.seen.answer("health", await self._client.get("/health"))
        await asyncio.sleep(0.02)

    async def commands(self, n: int) -> None:
        sae_id = self._sae_id
        for command in (
            {"type": "Steer", "sae_id": sae_id, "features": [{**EDIT, "strength": 1.0 + n % 50}]},
            {"type": "Monitor", "sae_id": sae_id, "enabled": n % 2 == 0},
            *([{"type": "Detach", "sae_id": sae_id}, {"type": "Attach", "sae_id": sae_id}] if n % 10 == 9 else []),
        ):
            answer = await self._client.post("/api/commands", json=command, headers={"Prefer": "wait=120"})
            self.seen.answer("commands", answer)
            await asyncio.sleep(0.5)


async def watched(pid: int, until: float) -> tuple[list[tuple[float, float]], list[int]]:
    """(seconds, MB resident), and numbers of open files, each second."""
    sizes: list[tuple[float, float]] = []
    files: list[int] = []
    while time.monotonic() < until:
        sizes.append((time.monotonic(), resident(pid)))
        files.append(open_files(pid))
        await asyncio.sleep(1)
    return sizes, files


def resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def soak(service: Process, sae_id: str, minutes: float, clients: int) -> Seen:
    seen, began = Seen(), time.monotonic()
    until = began + 60 * minutes
    at_rest = open_files(service.pid)
    watching = asyncio.create_task(watched(service.pid, until))
    await Load(service, sae_id, seen, until).run(clients)
    sizes, files = await watching
    slope = 60 * statistics.linear_regression(*zip(*sizes[len(sizes) // 2 :], strict=True)).slope
    print(f"{'':16}{'asked':>8}{'p50 ms':>10}{'p99 ms':>10}   statuses")
    for kind, times in seen.times.items():
        p50, p99 = quantiles(times) if len(times) > 1 else (times[0], times[0])
        print(f"{kind:16}{len(times):8}{p50:10.1f}{p99:10.1f}   {dict(sorted(seen.statuses[kind].items()))}")
    print(f"{seen.receipts} receipts; {sizes[0][1]:.0f} MB at first, {sizes[-1][1]:.0f} MB at last, in the second half")
    print(f"{slope:+.1f} MB a minute; open files: {at_rest} at rest, {max(files)} at most")
    if minutes >= SETTLED_MINUTES:
        seen.check(slope <= MOST_GROWTH, f"memory grows by {slope:.1f} MB a minute")
    return seen


def settled(service: Process, seen: Seen, at_rest: int) -> None:
    """What has to hold once nobody asks for anything any more."""
    deadline = time.monotonic() + 120
    while service.client.get("/api/state").json()["generations"] and time.monotonic() < deadline:
        time.sleep(0.5)
    types = Counter[str]()
    with service.client.stream("GET", "/api/log", headers={"accept": "application/x-ndjson"}) as answer:
        for line in answer.iter_lines():
            types[line.partition('"type":"')[2].partition('"')[0]] += 1
    begun, ended = types["GenerationStarted"], types["GenerationFinished"]
    seen.check(begun == ended, f"{begun} texts begun on record, {ended} ended")
    seen.check(service.client.get("/api/log/verify").json()["ok"], "the chain is broken")
    files = open_files(service.pid)
    seen.check(files <= at_rest + MOST_FILES, f"{files} open files, {at_rest} before")
    print(f"on record: {types.total()} events, {begun} texts; {files} open files at the end")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1)
    given = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    model = prepare_model(cache, lambda *_: None)
    settings = {"SAE_ACTOR_ENGINE_THREADS": str(given.threads)}
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder) / "d", "--torch", environment=settings) as one:
        sae_id = prepared_service(one, model)
        at_rest = open_files(one.pid)
        seen = asyncio.run(soak(one, sae_id, given.minutes, given.clients))
        settled(one, seen, at_rest)
        words = one.stderr.read_text()
        seen.check("Traceback" not in words, f"the service's log has a traceback: {words[-2000:]}")
    for what, count in Counter(seen.wrong).most_common(20):
        print(f"{count} times {what}")
    print("ok" if not seen.wrong else f"{len(seen.wrong)} times something did not hold")
    return min(len(seen.wrong), 100)


if __name__ == "__main__":
    sys.exit(main())
