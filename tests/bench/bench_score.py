"""Scoring many prompts in one request, against a plain batched forward pass of the same tokens.

    python -m tests.bench.bench_score [--prompts 512] [--tokens 64] [--rounds 3] [--threads 2] [--batch 8]

Plain: transformers' forward pass over the same ids in batches of `--batch` texts, with the log softmax of every
position and the log probabilities of the tokens taken from it (`forward` leaves that out). Scored: `POST /api/score`
with everything around it, admission, record and JSON included: under one variant, and under the usual two, of which
the second is the first where nothing is steered. All are measured in turn, round by round, so that other work on the
machine meets them alike; medians of wall time and of processor time are printed, with their ratios. Needs the demo's
model (prepared at the first run).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch
import transformers

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from tests.api.over_http import over_http

BARE = [{"name": "bare", "sae": {"baseline": True}}]
STEERED = [{"name": "steered", "sae": {"steering": [{"feature": 584, "strength": 85.0}]}}]


class Taken(NamedTuple):
    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    folder = prepare_model(cache, lambda *_: None)
    torch.set_num_threads(asked.threads)
    asyncio.run(measure(folder, asked))


async def measure(folder: Path, asked: argparse.Namespace) -> None:
    """Print the table."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (asked.prompts, asked.tokens), generator=generator)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.to(asked.device)
    with tempfile.TemporaryDirectory() as home:
        async with over_http(Path(home) / "log", folder, threads=asked.threads, device=asked.device) as (
            client,
            recorder,
        ):
            client.timeout = httpx.Timeout(3600)
            await recorder.attach(SAE_FOLDER)
            cases: dict[str, Callable[[], Awaitable[Any]]] = {
                "forward": lambda: plain(model, ids, asked.batch, scores=False),
                "plain": lambda: plain(model, ids, asked.batch, scores=True),
                "scored": lambda: scored(client, ids, variants=BARE),
                "usual variants": lambda: scored(client, ids),
                "steered, and KL": lambda: scored(client, ids, variants=[*STEERED, *BARE]),
            }
            found: dict[str, list[Taken]] = {name: [] for name in cases}
            check(await plain(model, ids[:8], asked.batch, scores=True), await scored(client, ids[:8], variants=BARE))
            for _ in range(asked.rounds):
                for name, case in cases.items():
                    found[name].append(await clocked(case))
            report(found, asked)


def report(found: dict[str, list[Taken]], asked: argparse.Namespace) -> None:
    tokens = asked.prompts * asked.tokens
    forward = found["forward"]
    for name, taken in found.items():
        wall, processor = (statistics.median(each) for each in zip(*taken, strict=True))
        shares = [
            statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
            for ours, theirs in zip(zip(*forward, strict=True), zip(*taken, strict=True), strict=True)
        ]
        print(
            f"{name:<16} {tokens / wall:8.0f} tokens/s, {processor:7.1f} s of processor; of forward: "
            f"{shares[0]:.3f} (wall), {shares[1]:.3f} (processor)"
        )


async def clocked(case: Callable[[], Awaitable[Any]]) -> Taken:
    began, used = time.perf_counter(), time.process_time()
    await case()
    return Taken(time.perf_counter() - began, time.process_time() - used)


async def plain(model: Any, ids: torch.Tensor, batch: int, *, scores: bool) -> list[list[float]]:
    found: list[list[float]] = []
    with torch.inference_mode():
        for some in torch.split(ids.to(model.device), batch):
            logits = model(input_ids=some, use_cache=False).logits
            if scores:
                logprobs = logits[:, :-1].float().log_softmax(dim=-1)
                found += logprobs.gather(2, some[:, 1:, None])[..., 0].tolist()
            else:
                logits[0, 0, 0].item()
    return found


async def scored(client: httpx.AsyncClient, ids: torch.Tensor, **more: Any) -> list[list[float]]:
    body = {"inputs": [{"token_ids": each} for each in ids.tolist()], **more}
    answer = await client.post("/api/score", json=body)
    answer.raise_for_status()
    return [each["logprobs"][1:] for each in answer.json()["results"]]


def check(wanted: list[list[float]], found: list[list[float]]) -> None:
    """The two say the same."""
    worst = max(abs(a - b) for one, other in zip(wanted, found, strict=True) for a, b in zip(one, other, strict=True))
    if worst > 1e-3:
        raise AssertionError(f"the scores differ by {worst:.1e}")


if __name__ == "__main__":
    main()
