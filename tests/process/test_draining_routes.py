"""SIGTERM under a load on every kind of route: nobody is answered 5xx but 503 with Retry-After, and what runs ends."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from .harness import Process, until
from .test_draining import prepared
from .test_kill import SAE_ID
from .test_reloading import line, tokens

TEXT = {"prompt": "hello world", "max_tokens": 6, "ignore_eos": True}
CHAT = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "ignore_eos": True}
VARIANTS = [{"name": "bare", "sae": {"baseline": True}}, {"name": "steered", "sae": {"steering": []}}]
POSTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", TEXT),
    ("/v1/completions", {**TEXT, "prompt": ["hello"] * 8, "stream": True}),
    ("/v1/chat/completions", {**CHAT, "stream": True, "logprobs": True, "top_logprobs": 5}),
    ("/v1/responses", {"model": "default", "input": "hello", "max_output_tokens": 6}),
    ("/api/compare", TEXT),
    ("/api/score", {"inputs": [{"prompt": "hello"}] * 64, "variants": VARIANTS}),
    ("/api/activations", {"inputs": [{"prompt": "hello"}] * 16}),
    ("/api/contrast", {"positive": ["hello"] * 8, "negative": ["world"] * 8}),
    ("/api/lens", {"prompt": "hello"}),
    ("/tokenize", {"prompt": "hello"}),
    ("/api/generations/search", {"prompt": "hello"}),
    ("/api/commands", {"type": "Steer", "sae_id": SAE_ID, "features": []}),
    ("/api/commands", {"type": "Download", "repository_id": "org/none", "path": "none"}),
    ("/api/commands", {"type": "Run", "kind": "evaluate", "spec": {"sae_id": SAE_ID, "texts": {"inline": ["a b c"]}}}),
]
GETS = ("/health", "/api/state", "/api/log?limit=5000", "/api/log/backup", "/api/log/export", "/api/generations",
        "/api/log/verify", "/api/runs", "/metrics", "/v1/models", f"/api/saes/{SAE_ID}/features/3")  # fmt: skip


class Asked:
    """What was answered, by route and status."""

    def __init__(self) -> None:
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []

    def take(self, path: str, answer: httpx.Response) -> None:
        self.statuses[path, answer.status_code] += 1
        bad = answer.status_code >= 500
        if bad and (answer.status_code != 503 or int(answer.headers.get("retry-after", "0")) < 1):
            self.wrong.append(f"{path} {answer.status_code} {answer.text[:200]}")


def test_no_answer_is_a_5xx_without_a_way_on(tmp_path: Path) -> None:
    asked, over = Asked(), threading.Event()
    with (
        Process(
            tmp_path / "data", "--step-seconds", "0.02", environment={"SAE_ACTOR_SERVER_DRAIN_SECONDS": "3"}
        ) as process,
        ThreadPoolExecutor(len(POSTS) + len(GETS) + 2) as clients,
    ):
        prepared(process)

        def asking(path: str, send: Callable[[], httpx.Response]) -> None:
            while not over.is_set():
                try:
                    asked.take(path, send())
                except httpx.ConnectError:
                    return  # the port is closed
                except httpx.TransportError as error:
                    # A stream that the end cut off, or a connection that was made and not taken any more.
                    asked.statuses[f"{path} {type(error).__name__}", 0] += 1

        def post(path: str, body: dict[str, Any]) -> Callable[[], httpx.Response]:
            return lambda: httpx.post(process.url + path, json=body, timeout=60)

        def get(path: str) -> Callable[[], httpx.Response]:
            return lambda: httpx.get(process.url + path, timeout=60)

        following = [clients.submit(get("/api/events")) for _ in range(2)]
        loads = [clients.submit(asking, path, post(path, body)) for path, body in POSTS]
        loads += [clients.submit(asking, path, get(path)) for path in GETS]
        try:
            paths = {path for path, _ in POSTS} | set(GETS)
            until(lambda: {path for path, _ in asked.statuses} >= paths, 100)
            before = sum(asked.statuses.values())
            process.signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            over.set()
        for each in loads:
            each.result(60)
        assert all(each.result(60).text.rstrip().rpartition("event: ")[2].startswith("bye") for each in following)
    assert asked.wrong == []
    assert sum(asked.statuses.values()) > before
    refused = {path for path, status in asked.statuses if status == 503}
    assert {"/v1/completions", "/v1/chat/completions", "/api/score", "/api/commands"} <= refused
    with Process(tmp_path / "data") as process:
        process.until_ready()
        assert process.client.get("/api/log/verify").json()["ok"]
        types = Counter(event["type"] for event in process.client.get("/api/log?limit=5000").json()["events"])
        assert types["GenerationStarted"] == types["GenerationFinished"]


def test_tokens_are_rotated_without_a_dropped_stream(tmp_path: Path) -> None:
    """Texts under way of who stays go on to their own end; those of who goes end at once, and for good."""
    file = tmp_path / "tokens"
    tokens(file, line("alice", "operator", "old"), line("bob", "user", "bob's"))
    environment = {"SAE_ACTOR_SERVER_TOKENS_FILE": str(file)}
    with (
        Process(tmp_path / "data", "--step-seconds", "0.2", environment=environment) as process,
        ThreadPoolExecutor(4) as clients,
    ):
        process.client.headers["authorization"] = "Bearer old"
        prepared(process)
        begun = threading.Barrier(5)

        def read(token: str, most: int) -> list[str]:
            """The events of one stream."""
            headers = {"authorization": f"Bearer {token}"}
            body = {**TEXT, "max_tokens": most, "stream": True}
            with httpx.stream(
                "POST", f"{process.url}/v1/completions", json=body, headers=headers, timeout=60
            ) as stream:
                assert stream.status_code == 200
                lines = stream.iter_lines()
                first = next(lines)
                begun.wait(60)
                return [first, *filter(None, lines)]

        stays = [clients.submit(read, "old", 40) for _ in range(2)]
        goes = [clients.submit(read, "bob's", 200) for _ in range(2)]
        begun.wait(60)
        tokens(file, line("alice", "operator", "old"), line("carol", "user", "new"))
        process.signal(signal.SIGHUP)
        for each in goes:
            assert "[DONE]" not in each.result(60)[-1]
        for each in stays:
            events = each.result(60)
            assert events[-1] == "data: [DONE]"
            ends = [json.loads(event[6:])["choices"] for event in events[:-1]]
            assert [choice["finish_reason"] for choices in ends for choice in choices][-1] == "length"
        statuses = [
            httpx.post(
                f"{process.url}/v1/completions", json=TEXT, headers={"authorization": f"Bearer {token}"}
            ).status_code
            for token in ("old", "bob's", "new")
        ]
        assert statuses == [200, 401, 200]
        until(lambda: not open_texts(process))
    assert process.stderr.read_text() == ""


def open_texts(process: Process) -> set[str]:
    """Texts without an end on record."""
    begun, ended = set(), set()
    for event in process.events():
        match event["type"]:
            case "GenerationStarted":
                begun.add(event["data"]["generation_id"])
            case "GenerationFinished":
                ended.add(event["data"]["generation_id"])
    return begun - ended
