"""Runs of kind `evaluate` and `profile` on the demo, against the same computation written plainly.

    python -m tests.bench.bench_runs [--texts 64] [--tokens 128] [--rounds 3] [--threads 2] [--batch 4] [--kinds KIND …]

Plain: transformers' forward passes over the same ids in batches of `--batch` texts, with a hook at the SAE's point.
For `evaluate` three of them (clean, with the SAE, ablated), cross entropy, KL and the sums of the reconstruction; for
`profile` one, and the codes of every token. Run: asked for over HTTP, durable rows and summary included, from the
request until it is seen to be completed. The two are measured in turn, round by round, so that other work on the
machine meets them alike; medians are printed, with their ratio. A profile also writes a row a feature at its end, some
seconds however short the texts: its ratio grows with their number. Needs the demo's model (prepared at the first run).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from sae_actor.sae import SAE, load_sae
from tests.process.harness import Process, until

BLOCK = "model.layers.15"
"""Its output is what the bundled SAE reads."""
TEXT = "the of and to in is was for on as with by at from his it an are this be or had not but what "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="texts of a plain pass; the service has 512 tokens a pass")
    parser.add_argument("--kinds", nargs="+", choices=["evaluate", "profile"], default=["evaluate", "profile"])
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    folder = prepare_model(cache, lambda *_: None)
    torch.set_num_threads(asked.threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    texts = made(tokenizer, asked.texts, asked.tokens)
    ids = torch.tensor([tokenizer(text).input_ids for text in texts])
    sae = load_sae(str(SAE_FOLDER), dtype="float32")
    kinds: dict[str, Callable[[], object]] = {
        "evaluate": lambda: evaluated(model, sae, ids, asked.batch),
        "profile": lambda: profiled(model, sae, ids, asked.batch),
    }
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as process:
        sae_id = process.client.get("/api/saes/attachment").json()["attachments"][0]["sae_id"]
        spec = {"sae_id": sae_id, "texts": {"texts": texts}}
        for kind in asked.kinds:
            plain = kinds[kind]
            plain(), run(process, kind, spec)  # not counted: memory is taken, kernels are chosen
            taken = [(clocked(plain), clocked(partial(run, process, kind, spec))) for _ in range(asked.rounds)]
            plainly, as_run = (statistics.median(each) for each in zip(*taken, strict=True))
            ratio = statistics.median(one / other for one, other in taken)
            total = ids.numel()
            print(f"{kind:<9} {total / as_run:8.0f} tokens/s; plain {total / plainly:8.0f}; of plain {ratio:.3f}")


def made(tokenizer: Any, count: int, tokens: int) -> list[str]:
    """Texts of exactly so many tokens."""
    generator = torch.Generator().manual_seed(0)
    known, found = TEXT.split(), []
    for _ in range(count):
        words = [known[n] for n in torch.randint(len(known), (2 * tokens,), generator=generator).tolist()]
        while len(tokenizer(" ".join(words)).input_ids) > tokens:
            words.pop()
        found.append(" ".join(words))
        assert len(tokenizer(found[-1]).input_ids) == tokens
    return found


@contextmanager
def serving(home: Path) -> Iterator[Process]:
    with Process(home / "data", command=("sae_actor", "demo", "--port", "0", "--data-dir", str(home / "data"))) as it:
        it.client.timeout = 600
        it.until_ready(600)
        yield it


def run(process: Process, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """From the request to its summary."""
    answer = process.client.post("/api/commands", json={"type": "Run", "kind": kind, "spec": spec})
    run_id = answer.raise_for_status().json()["run_id"]

    def view() -> dict[str, Any]:
        found: dict[str, Any] = process.client.get(f"/api/runs/{run_id}").raise_for_status().json()
        return found

    until(lambda: view()["state"] in ("completed", "failed"), 3600)
    found = view()
    if found["state"] != "completed":
        raise AssertionError(found)
    return found


def clocked(case: Callable[[], object]) -> float:
    began = time.perf_counter()
    case()
    return time.perf_counter() - began


def evaluated(model: Any, sae: SAE, ids: Tensor, batch: int) -> dict[str, float]:
    sums: dict[str, float] = dict.fromkeys(("clean", "sae", "ablation", "kl_sae", "kl_ablation", "l0", "errors"), 0.0)
    with torch.inference_mode():
        for some in torch.split(ids, batch):
            seen: list[Tensor] = []
            clean = logits(model, some, partial(keep, seen))
            x = seen[0]
            acts = sae.encode(x)
            new = sae.decode(acts)
            sums["l0"] += float((acts != 0).sum())
            sums["errors"] += float((x - new).double().pow(2).sum())
            sums["clean"] += ce(clean, some)
            for name, value in (("sae", new), ("ablation", torch.zeros_like(new))):
                changed = logits(model, some, partial(replace, value))
                sums[name] += ce(changed, some)
                p, q = (each[:, :-1].log_softmax(-1) for each in (clean, changed))
                sums[f"kl_{name}"] += float((p.exp() * (p - q)).sum())
    return sums


def profiled(model: Any, sae: SAE, ids: Tensor, batch: int) -> list[Tensor]:
    found: list[Tensor] = []
    with torch.inference_mode():
        for some in torch.split(ids, batch):
            seen: list[Tensor] = []
            logits(model, some, partial(keep, seen))
            found.append(sae.encode(seen[0]).to_sparse())
    return found


def keep(seen: list[Tensor], x: Tensor) -> None:
    seen.append(x.clone())


def replace(value: Tensor, _: Tensor) -> Tensor:
    return value


def logits(model: Any, ids: Tensor, edit: Callable[[Tensor], Tensor | None]) -> Tensor:
    def hook(_: object, __: object, output: Any) -> Any:
        return edit(output)

    handle = model.get_submodule(BLOCK).register_forward_hook(hook)
    try:
        found: Tensor = model(input_ids=ids, use_cache=False).logits
        return found
    finally:
        handle.remove()


def ce(found: Tensor, ids: Tensor) -> float:
    own = found[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return float((found[:, :-1].logsumexp(-1) - own).double().sum())


if __name__ == "__main__":
    main()
