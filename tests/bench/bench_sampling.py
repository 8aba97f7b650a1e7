"""Tokens per second with penalties and `logit_bias` on every text, and with a JSON schema on every text, next to none.

    python -m tests.bench.bench_sampling [--texts 8 32] [--tokens 48] [--rounds 5] [--threads 2] [--device cpu]

The cases are measured in turn, round by round; of each the median of its ratios to the plain case of the same round is
printed, and the same of the CPU time that whole runs took, prompts included: on a machine with other work the ratio of
times is noise. The clock runs from the moment when every text has its first token to that when the first one has its
last. The schema is one that no text comes to the end of. Needs the demo's model (prepared at the first run).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sae_actor.demo.model import prepare_model
from sae_actor.domain.events import ResponseFormat, Sampling
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import Finished, GenerationRequest
from tests.bench.bench_engine import steady
from tests.engine.asking import load, no_progress

SCHEMA = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"enum": ["cat", "dog", "a bird"]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 100},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
        },
        "required": ["name", "kind", "legs", "tags"],
        "additionalProperties": False,
    },
}
WORDS = ("the sea", "a red house", "my day", "old maps", "two brothers", "rain", "the bread", "an honest man")
PENALTIES = {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", help="a folder, in place of the demo's model")
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    asyncio.run(measure(asked.model or str(prepare_model(cache, lambda *_: None)), asked))


async def measure(folder: str, asked: argparse.Namespace) -> None:
    """Print the table."""
    engine = TorchEngine(EngineSettings(threads=asked.threads))
    facts = await engine.load_model(load(folder, device=asked.device), no_progress)
    assert engine._model is not None
    engine._model.tokenizer.end_ids = frozenset()  # as many tokens each time
    asks = [[{"role": "user", "content": f"Write of {WORDS[n % 8]}, number {n}."}] for n in range(max(asked.texts))]
    prompts = [(await engine.tokenize(ask)).token_ids for ask in asks]
    grammar = await engine.grammar(json.dumps(SCHEMA))
    form = ResponseFormat(type="json_schema")
    bias = tuple((token, 1.5) for token in range(100, 400, 3))

    async def one(n: int, more: dict[str, Any]) -> list[float]:
        sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=asked.tokens, seed=n)
        own = grammar if "response_format" in more else None
        request = GenerationRequest(
            generation_id="b", token_ids=prompts[n], sampling=replace(sampling, **more), intervention=(), grammar=own
        )
        times: list[float] = []
        async for item in engine.generate(request):
            if isinstance(item, Finished):
                assert item.reason == "length", item
                return times
            times.append(time.perf_counter())
        raise AssertionError

    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "penalties, 100 biases": {**PENALTIES, "logit_bias": bias},
        "JSON schema": {"response_format": form},
        "all of them": {**PENALTIES, "logit_bias": bias, "response_format": form},
        "sampled": {"temperature": 1.0},
        "sampled, penalties": {"temperature": 1.0, **PENALTIES, "logit_bias": bias},
        "sampled, JSON schema": {"temperature": 1.0, "response_format": form},
        "sampled, top_k 40": {"temperature": 1.0, "top_k": 40, "min_p": 0.02},
    }
    print(f"{facts.model_id} in {facts.dtype} on {facts.device}, {asked.threads} threads, {asked.tokens} tokens, "
          f"{asked.rounds} rounds")  # fmt: skip
    for count in asked.texts:
        rates: dict[str, list[float]] = {name: [] for name in cases}
        spent: dict[str, list[float]] = {name: [] for name in cases}
        for round_ in range(asked.rounds + 1):
            for name, more in cases.items():
                began = time.process_time()
                rate = steady(await asyncio.gather(*(one(n, more) for n in range(count))))
                if round_:  # the first warms up
                    rates[name].append(rate)
                    spent[name].append(time.process_time() - began)
        for name, each in rates.items():
            beside = "sampled" if name.startswith("sampled") else "plain"
            ratio = statistics.median(mine / theirs for mine, theirs in zip(each, rates[beside], strict=True))
            by_cpu = statistics.median(theirs / mine for mine, theirs in zip(spent[name], spent[beside], strict=True))
            rate = statistics.median(each)
            print(f"{count:3} texts, {name:24}{rate:8.1f} tokens/s {ratio:6.2f}, by CPU time {by_cpu:.2f}")
    await engine.close()


if __name__ == "__main__":
    main()
