"""`/api/contrast` of 10 + 10 sentences on the demo, beside the plain forward pass of the same sentences in one batch.

    python -m tests.bench.bench_contrast [--rounds 5] [--threads 0]

A real service process with the demo's model and SAE; the plain pass is transformers' own, padded, in this process with
as many threads, before and after, so that other work on the machine meets both. The promise is 2 s. With `--long` also
how long `/health` waits while activations of many features are answered. Needs the demo's model (prepared at the first
run).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from tests.bench.bench_turns import quantiles
from tests.process.harness import Process

PROMISED_SECONDS = 2.0
PLEASED = [
    "I love this book", "What a lovely day", "The soup was delicious", "She smiled and thanked everyone",
    "We won the game at last", "My best friend is visiting", "The garden is full of flowers",
    "He laughed until he cried with joy", "It is the happiest day of my life", "The children are singing",
]  # fmt: skip
ANNOYED = [
    "I hate this book", "What an awful day", "The soup was disgusting", "She frowned and blamed everyone",
    "We lost the game again", "My worst enemy is visiting", "The garden is full of rubbish",
    "He shouted until he was hoarse with rage", "It is the saddest day of my life", "The children are crying",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--long", action="store_true")
    given = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    model = prepare_model(cache, lambda *_: None)
    torch.set_num_threads(given.threads or len(os.sched_getaffinity(0)))
    plain = _Plain(model)
    settings = {"SAE_ACTOR_ENGINE_THREADS": str(given.threads)}
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder) / "d", "--torch", environment=settings) as one:
        _prepare(one, model)
        took, passes = [], []
        for _ in range(given.rounds):
            passes.append(plain.seconds())
            took.append(_contrast(one.url))
        print(f"{'10 + 10 sentences':24}{'first':>9}{'median':>9}{'worst':>9}  s")
        for name, each in (("plain batched forward", passes), ("/api/contrast", took)):
            print(f"{name:24}{each[0]:9.3f}{sorted(each)[len(each) // 2]:9.3f}{max(each):9.3f}")
        verdict = "ok" if max(took) <= PROMISED_SECONDS else "TOO SLOW"
        print(f"{max(took):.2f} s at worst, {PROMISED_SECONDS:g} s promised: {verdict}")
        if given.long:
            _long(one.url)


def _prepare(service: Process, model: Path) -> None:
    service.client.timeout = httpx.Timeout(120)
    service.send("model", type="LoadModel", model=str(model))
    service.until_ready(120)
    sae_id = service.send("import", type="Import", path=str(SAE_FOLDER))["events"][0]["data"]["sae_id"]
    assert service.send("attach", type="Attach", sae_id=sae_id)["status"] == "completed"


class _Plain:
    """One padded batch, and no SAE."""

    def __init__(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._batch: Any = tokenizer([*PLEASED, *ANNOYED], return_tensors="pt", padding=True)
        self._network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def seconds(self) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            self._network(**self._batch, logits_to_keep=1)
        return time.perf_counter() - start


def _contrast(url: str) -> float:
    start = time.perf_counter()
    answer = httpx.post(f"{url}/api/contrast", json={"positive": PLEASED, "negative": ANNOYED}, timeout=60)
    answer.raise_for_status()
    return time.perf_counter() - start


def _long(url: str) -> None:
    """The largest answer that there may be, and `/health` meanwhile, beside the service at rest."""
    body = {"token_ids": [500 + n for n in range(455)], "features": list(range(2304))}
    sizes: list[int] = []

    def ask() -> None:
        # In a process of its own: to read so much here would delay the other thread.
        command = [
            "curl", "-sS", "--fail", "-H", "Content-Type: application/json", "--data", "@-", f"{url}/api/activations"
        ]  # fmt: skip
        sizes.append(
            len(subprocess.run(command, input=json.dumps(body).encode(), stdout=subprocess.PIPE, check=True).stdout)
        )

    for name, during in (("at rest", lambda: time.sleep(5)), ("455 tokens × 2304 features", ask)):
        seconds, waits = _health_during(url, during)
        p50, p99 = quantiles(waits)
        print(f"/health {name}: {p50:.1f} ms median, {p99:.0f} ms p99, {max(waits):.0f} ms at worst in {seconds:.1f} s")
    print(f"an answer of {sizes[0] / 2**20:.0f} MiB")
    more = httpx.post(f"{url}/api/activations", json={**body, "token_ids": body["token_ids"] * 2}, timeout=60)
    print(f"910 tokens: {more.status_code} {more.json()['detail']}")


def _health_during(url: str, act: Callable[[], None]) -> tuple[float, list[float]]:
    """How long it takes, and the milliseconds of each GET meanwhile."""
    waits: list[float] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not done.is_set():
                start = time.perf_counter()
                client.get("/health").raise_for_status()
                waits.append(1000 * (time.perf_counter() - start))
                time.sleep(0.005)

    asking = threading.Thread(target=ask)
    asking.start()
    start = time.perf_counter()
    try:
        act()
    finally:
        done.set()
        asking.join()
    return time.perf_counter() - start, waits


if __name__ == "__main__":
    main()
