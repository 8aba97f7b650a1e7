"""Tokens per second while texts are being made: of one, eight and thirty-two at once, steered and watched.

    python -m tests.bench.bench_engine [--tokens 48] [--rounds 3] [--threads 2] [--device cpu] [--library]

Baseline: transformers' `generate` of one text in the same run. All cases are measured in turn, round by round, so that
other work on the machine meets them alike; medians and their ratios are printed. Prompts are left out: the clock runs
from the moment when every text of a case has its first token to that when the first one has its last. `--library` adds
transformers' own continuous batching, whole runs, prompts included, beside ours measured the same way. Needs the
demo's model (prepared at the first run).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from sae_actor.domain.events import Sampling
from sae_actor.domain.refs import ActiveSae, Edit, HookPoint, Method
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import Finished, GenerationRequest, Watch
from tests.engine.asking import attach, load, no_progress

POINT = HookPoint("resid_post", 15)
METHODS: tuple[Method, ...] = ("add", "set", "scale", "cap", "project", "set_projection")
Run = Callable[[], Awaitable[float]]
"""Tokens per second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--library", action="store_true")
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    folder = prepare_model(cache, lambda *_: None)
    torch.set_num_threads(asked.threads)
    asyncio.run(measure(str(folder), asked))


class Clock:
    """When tokens came, as a streamer of `generate`: the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        self.times = self.times[1:]


def steady(texts: Sequence[Sequence[float]]) -> float:
    """Tokens per second while all texts are being made; of each the times of its tokens."""
    first, last = max(times[0] for times in texts), min(times[-1] for times in texts)
    return sum(first < at <= last for times in texts for at in times) / (last - first)


async def measure(folder: str, asked: argparse.Namespace) -> None:
    """Print the table."""
    engine = TorchEngine(EngineSettings(threads=asked.threads))
    facts = await engine.load_model(load(folder, device=asked.device), no_progress)
    await engine.attach(attach(7, point=POINT, d_in=576, d_sae=2304), str(SAE_FOLDER))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, facts.dtype))
    model = model.to(facts.device).eval()
    model.generation_config.eos_token_id = None  # as many tokens each time
    assert engine._model is not None
    engine._model.tokenizer.end_ids = frozenset()
    words = ["the sea", "a red house", "my day", "old maps", "two brothers", "rain", "the bread", "an honest man"]
    asks = [[{"role": "user", "content": f"Tell me about {words[n % 8]}, number {n}."}] for n in range(32)]
    prompts = [(await engine.tokenize(ask)).token_ids for ask in asks]

    async def reference() -> float:
        clock, fed = Clock(), torch.tensor([prompts[0]], device=facts.device)
        settings = {"max_new_tokens": asked.tokens, "do_sample": False, "pad_token_id": 0, "streamer": clock}
        await asyncio.to_thread(model.generate, fed, attention_mask=torch.ones_like(fed), **settings)
        return steady([clock.times])

    def texts(count: int, steering: Callable[[int], tuple[Edit, ...]] | None = None, top_k: int = 0,
              temperature: float = 0.0) -> Run:  # fmt: skip
        async def one(n: int) -> list[float]:
            edits = () if steering is None else steering(n)
            sae = ActiveSae(sae_id="s", weights_sha256="", hook_point=POINT, steering=edits, attach_position=7)
            request = GenerationRequest(
                generation_id="bench",
                token_ids=prompts[n],
                sampling=Sampling(temperature=temperature, top_p=1.0, max_tokens=asked.tokens, seed=n),
                intervention=(sae,),
                watched=(Watch(sae=sae, top_k=top_k),) if top_k else (),
            )
            times: list[float] = []
            async for item in engine.generate(request):
                if isinstance(item, Finished):
                    assert item.reason == "length", item
                    return times
                times.append(time.perf_counter())
            raise AssertionError

        async def run() -> float:
            return steady(await asyncio.gather(*(one(n) for n in range(count))))

        return run

    def own(n: int) -> tuple[Edit, ...]:
        sinks = ("sink",) if n % 2 else ()
        return (Edit(feature=37 * n, strength=2.0, method=METHODS[n % 6], exclude=sinks),)  # type: ignore[arg-type]  # a literal

    def many(_: int) -> tuple[Edit, ...]:
        return tuple(Edit(feature=i, strength=0.5, method="scale") for i in range(64))

    cases: dict[str, Run] = {
        "generate": reference,
        "1 text": texts(1),
        "1, steered": texts(1, own),
        "1, 64 edits": texts(1, many),
        "8 texts": texts(8),
        "8, steered each": texts(8, own),
        "32 texts": texts(32),
        "32, steered each": texts(32, own),
        "32, top-10 features": texts(32, top_k=10),
        "32, sampled": texts(32, temperature=1.0),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(asked.rounds + 1):
        for name, run in cases.items():
            rate = await run()
            if round_:  # the first warms up
                rates[name].append(rate)
    print(f"{facts.model_id} in {facts.dtype} on {facts.device}, {asked.threads} threads, "
          f"{asked.tokens} tokens, {asked.rounds} rounds")  # fmt: skip
    medians = {name: statistics.median(each) for name, each in rates.items()}
    for name, rate in medians.items():
        beside = f"{name.split(',')[0].split()[0]} texts" if name[0] in "38" else "1 text"
        against = "" if name in ("generate", beside) else f"{rate / medians[beside]:6.2f} of {beside}"
        print(f"{name:22}{rate:8.1f} tokens/s {rate / medians['generate']:6.2f} of generate {against}")
    if asked.library:
        await library(engine, model, prompts, asked)
    await engine.close()


async def library(engine: TorchEngine, model: Any, prompts: Sequence[Sequence[int]], asked: argparse.Namespace) -> None:
    """Whole runs of 1, 8 and 32 texts with transformers' continuous batching, and with ours."""
    config = ContinuousBatchingConfig(
        num_blocks=64, max_batch_tokens=512, page_size=256, max_requests_per_batch=32, allow_block_sharing=False,
        use_async_batching=False, use_cuda_graph=False, auto_switch_to_flash=False, max_blocks_per_request=0,
    )  # fmt: skip
    settings = GenerationConfig(max_new_tokens=asked.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def theirs(count: int) -> float:
        begin = time.perf_counter()
        fed = [list(prompt) for prompt in prompts[:count]]
        out = model.generate_batch(inputs=fed, generation_config=settings, continuous_batching_config=config,
                                   progress_bar=False)  # fmt: skip
        assert all(len(each.generated_tokens) == asked.tokens for each in out.values())
        return float(count * asked.tokens / (time.perf_counter() - begin))

    async def ours(count: int) -> float:
        begin = time.perf_counter()

        async def one(n: int) -> None:
            sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=asked.tokens, seed=0)
            request = GenerationRequest(
                generation_id="b", token_ids=tuple(prompts[n]), sampling=sampling, intervention=()
            )
            async for _ in engine.generate(request):
                pass

        await asyncio.gather(*(one(n) for n in range(count)))
        return float(count * asked.tokens / (time.perf_counter() - begin))

    for count in (1, 8, 32):
        pairs = [(await asyncio.to_thread(theirs, count), await ours(count)) for _ in range(asked.rounds)]
        a, b = (statistics.median(each) for each in zip(*pairs, strict=True))
        print(
            f"{count:2} whole texts: continuous batching of transformers {a:7.1f} tokens/s, ours {b:7.1f} ({b / a:.2f})"
        )


if __name__ == "__main__":
    main()
