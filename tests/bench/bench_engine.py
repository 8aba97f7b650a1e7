"""Tokens per second of one text: transformers' `generate`, the engine bare, attached, steered. And of several texts.

    python -m tests.bench.bench_engine [--tokens 64] [--rounds 5] [--threads 1] [--device cpu]

Prints medians and their ratios to `generate`, measured in turn in the same run, so that other work on the machine
meets all of them alike. Needs the demo's model (prepared at the first run).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from sae_actor.domain.events import Sampling
from sae_actor.domain.refs import ActiveSae, Edit, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import Finished, TextRequest
from tests.engine.asking import attach, load, no_progress

POINT = HookPoint("resid_post", 15)
PROMPT = [{"role": "user", "content": "Tell me about your day."}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    folder = prepare_model(cache, lambda *_: None)
    torch.set_num_threads(asked.threads)
    asyncio.run(measure(str(folder), asked.tokens, asked.rounds, asked.threads, asked.device))


async def measure(folder: str, tokens: int, rounds: int, threads: int, device: str) -> None:
    """Print the table."""
    engine = TorchEngine(EngineSettings(threads=threads))
    facts = await engine.load_model(load(folder, device=device), no_progress)
    await engine.attach(attach(7, point=POINT, d_in=576, d_sae=2304), str(SAE_FOLDER))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, facts.dtype))
    model = model.to(facts.device).eval()
    model.generation_config.eos_token_id = None  # as many tokens each time
    assert engine._model is not None
    engine._model.end_ids = frozenset()
    ids = (await engine.tokenize(PROMPT)).token_ids

    async def reference() -> int:
        fed = torch.tensor([ids], device=facts.device)
        mask = torch.ones_like(fed)
        settings: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        out = await asyncio.to_thread(model.generate, fed, attention_mask=mask, **settings)
        return int(out.shape[1]) - len(ids)

    def text(*edits: Edit, attached: bool = True) -> Callable[[], Awaitable[int]]:
        sae = ActiveSae(sae_id="s", weights_sha256="", hook_point=POINT, steering=edits, attach_position=7)
        asked = TextRequest(
            generation_id="bench",
            token_ids=ids,
            sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=tokens, seed=0),
            intervention=(sae,) if attached else (),
        )

        async def run() -> int:
            async for item in engine.generate(asked):
                if isinstance(item, Finished):
                    assert item.reason == "length", item
                    return len(item.token_ids)
            raise AssertionError

        return run

    one = Edit(feature=584, strength=85.0, exclude=("sink",))
    many = tuple(Edit(feature=i, strength=0.5, method="scale") for i in range(64))
    cases: dict[str, Callable[[], Awaitable[int]]] = {
        "generate": reference,
        "engine, bare": text(attached=False),
        "engine, attached": text(),
        "engine, steered": text(one),
        "engine, 64 edits": text(*many),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name, run in cases.items():
            begin = time.perf_counter()
            made = await run()
            if round_:  # the first warms up
                seconds[name].append((time.perf_counter() - begin) / made)
    begin = time.perf_counter()
    made = sum(await asyncio.gather(*(text(one)() for _ in range(4))))
    four = made / (time.perf_counter() - begin)
    await engine.close()

    base = statistics.median(seconds["generate"])
    print(f"{facts.model_id} in {facts.dtype} on {facts.device}, {threads} threads, {tokens} tokens, {rounds} rounds")
    for name, each in seconds.items():
        median = statistics.median(each)
        print(f"{name:20}{1 / median:8.1f} tokens/s   {base / median:5.2f} of generate")
    print(f"{'4 steered texts':20}{four:8.1f} tokens/s   {four * base:5.2f} of generate (together)")


if __name__ == "__main__":
    main()
