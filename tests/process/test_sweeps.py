"""Sweeps: kill -9 in the middle of one, and a table of one in under ten lines, on the real model."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_actor.client import Client
from sae_actor.demo import SAE_FOLDER
from sae_actor.domain.weights import import_id_of
from sae_actor.hub.digests import sha256_of
from sae_actor.sae import load_sae
from tests.cli.conftest import Ran, bare_environment, command
from tests.process.harness import Process, until

__all__ = ["bare_environment", "command"]

PATH = str(SAE_FOLDER.resolve())
SAE_ID = import_id_of(PATH, digest=sha256_of(SAE_FOLDER / "sae_weights.safetensors"))
LAYER = 15


def sweep_of(prompts: int) -> dict[str, Any]:
    edit = {"feature": 584, "strength": 85.0, "positions": "generated"}
    return {
        "prompts": [f"prompt {number}" for number in range(prompts)],
        "variants": [{"name": "bare", "sae": {"baseline": True}}, {"name": "steered", "sae": {"steering": [edit]}}],
        "seeds": [1, 2], "max_tokens": 20, "features": [584], "continuations": [" yes"],
    }  # fmt: skip


def without_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "generation_id"} for row in rows]


def test_kill_9_in_a_sweep(tmp_path: Path) -> None:
    """What was durable stays, each row is there once, and the end is that of an undisturbed run."""
    data = tmp_path / "data"
    with Process(data, "--step-seconds", "0.003") as process, Client(process.url) as client:
        process.send("load", type="LoadModel", model="tiny")
        process.send("import", type="Import", path=PATH)
        process.send("attach", type="Attach", sae_id=SAE_ID)
        run_id = client.run("sweep", sweep_of(40), key="mine")
        until(lambda: client.run_now(run_id)["rows"] >= 5)
        process.signal(signal.SIGKILL)
        process.wait()
    with Process(data) as process, Client(process.url) as client:
        process.until_ready()
        before = list(client.run_rows(run_id))
        assert 5 <= len(before) < 160
        assert client.run("sweep", sweep_of(40), key="mine") == run_id, "asked for again, it is the same"
        done = client.run_end(run_id)
        rows = list(client.run_rows(run_id))
        whole = client.run_end(client.run("sweep", sweep_of(40)))
        assert without_ids(rows) == without_ids(list(client.run_rows(whole["run_id"])))
        events = process.events()
        verified = client.verify()
    assert rows[: len(before)] == before
    assert len({(row["prompt"], row["variant"], row["seed"]) for row in rows}) == len(rows) == done["rows"] == 160
    assert done["summary"] == whole["summary"]
    ended = {event["data"]["generation_id"]: event["data"] for event in events if event["type"] == "GenerationFinished"}
    assert all(ended[row["generation_id"]]["finish_reason"] == "length" for row in rows)
    assert verified["ok"]


def test_a_redaction_erases_the_row(tmp_path: Path, command: Callable[..., Ran]) -> None:
    """Of a run that is done, and of one that goes on: then the row is not made again."""
    data = tmp_path / "data"
    with Process(data, "--step-seconds", "0.003") as process, Client(process.url) as client:
        process.send("load", type="LoadModel", model="tiny")
        process.send("import", type="Import", path=PATH)
        process.send("attach", type="Attach", sae_id=SAE_ID)
        run_id = client.run("sweep", sweep_of(40))
        until(lambda: client.run_now(run_id)["rows"] >= 5)
        process.signal(signal.SIGINT)
        process.wait()
    started: dict[str, list[int]] = {}
    with Process(data, "--step-seconds", "5") as process, Client(process.url) as client:
        rows = list(client.run_rows(run_id))
        for event in process.events():
            if event["type"] in ("GenerationStarted", "GenerationFinished"):
                started.setdefault(event["data"]["generation_id"], []).append(event["position"])
        process.signal(signal.SIGINT)
        process.wait()
    gone = rows[2]
    assert _on_disk(data, gone["text"])
    for position in started[gone["generation_id"]]:
        assert command("log", "redact", str(position), "--why", "asked to", "--data-dir", str(data)).code == 0
    assert not _on_disk(data, gone["text"])
    with Process(data) as process, Client(process.url) as client:
        client.run_end(run_id)
        after = list(client.run_rows(run_id))
    assert after[2] == {"prompt": 0, "variant": "steered", "seed": 1, "redacted": True}
    assert after[:2] + after[3:5] == rows[:2] + rows[3:5]
    assert len(after) == 160


def _on_disk(data: Path, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in data.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Any:
    settings = {"SAE_ACTOR_ENGINE_THREADS": "1"}
    with Process(tmp_path_factory.mktemp("sweeps") / "data", "--torch", environment=settings) as process:
        process.client.timeout = 60
        process.send("model", type="LoadModel", model=str(real_model), dtype="float32", device="cpu")
        process.until_ready(100)
        process.send("import", type="Import", path=PATH)
        process.send("attach", type="Attach", sae_id=SAE_ID)
        yield process


PROMPTS = [
    "My day was good because", "The capital of France is", "I love this book. It is", "When I woke up this morning",
    "The best way to learn is", "My grandmother always said", "In the middle of the night", "The news today says",
    "Every spring the garden", "What I like about you is",
]  # fmt: skip
STRENGTHS = (0, 20, 40, 60, 80)


@pytest.mark.model
@pytest.mark.timeout(300)
def test_five_strengths_and_ten_prompts_to_a_table(demo: Process, tmp_path: Path, real_model: Path) -> None:
    url, prompts, sheet = demo.url, PROMPTS, tmp_path / "sweep.csv"
    # — the recipe —
    with Client(url) as client:
        edits = {s: [{"feature": 584, "strength": s}] for s in STRENGTHS}
        variants = [{"name": str(s), "sae": {"steering": edits[s]}} for s in STRENGTHS]
        run_id = client.run("sweep", prompts=prompts, variants=variants, seeds=[0], temperature=0, max_tokens=12,
                            features=[584], continuations=[" I believe in God."])  # fmt: skip
        client.run_end(run_id)
        sheet.write_bytes(client.run_table(run_id, "csv"))
    # — in plain torch —
    table = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8"), newline="")))
    assert [(int(row["prompt"]), row["variant"]) for row in table] == [
        (p, str(s)) for p in range(10) for s in STRENGTHS
    ]
    plain = Plain(real_model)
    for row in table[::7]:
        plain.agrees(row, PROMPTS[int(row["prompt"])], float(row["variant"]))
    with Client(url) as client:
        means = [each["ce_unsteered"] for each in client.run_now(run_id)["summary"]["variants"]]
    assert means[0] == min(means), "the model's own greedy texts are the likeliest"


class Plain:
    """The model as transformers has it, in float64, with one hook; nothing of the engine."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.sae = load_sae(PATH, dtype="float64")
        self.direction = torch.as_tensor(self.sae.W_dec[584]).double()

    def run(self, ids: list[int], prompt: int, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, and what arrives at the hook point. The first token and those far above the median are sinks."""
        seen: list[torch.Tensor] = []

        def hook(_: Any, __: Any, output: Any) -> Any:
            x = output if isinstance(output, torch.Tensor) else output[0]
            seen.append(x[0].clone())
            norms = x[0].norm(dim=-1)
            out = norms > 5 * norms[:prompt].median()
            out[0] = True
            new = x + torch.where(out, 0.0, strength)[None, :, None] * self.direction
            return new if isinstance(output, torch.Tensor) else (new, *output[1:])

        handle = self.model.model.layers[LAYER].register_forward_hook(hook)
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        handle.remove()
        return logits, seen[0]

    def logprobs(self, ids: list[int], prompt: int, strength: float) -> torch.Tensor:
        """Of the tokens after the prompt."""
        logits, _ = self.run(ids, prompt, strength)
        return logits[prompt - 1 : -1].log_softmax(-1).gather(1, torch.tensor(ids[prompt:])[:, None])[:, 0]

    def agrees(self, row: dict[str, str], text: str, strength: float) -> None:
        prompt = self.tokenizer(text)["input_ids"]
        ids = list(prompt)
        for _ in range(json.loads(row["receipt"])["tokens_generated"]):
            ids.append(int(self.run(ids, len(prompt), strength)[0][-1].argmax()))
        assert self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True) == row["text"]
        ce = -self.logprobs(ids, len(prompt), 0.0).mean()
        assert float(row["ce_unsteered"]) == pytest.approx(float(ce), abs=2e-3)
        more = self.tokenizer(" I believe in God.", add_special_tokens=False)["input_ids"]
        (after,) = json.loads(row["continuation_logprobs"])
        assert after == pytest.approx(float(self.logprobs([*prompt, *more], len(prompt), strength).sum()), abs=1e-2)
        x = self.run(ids, len(prompt), strength)[1][len(prompt) :]
        (told,) = json.loads(row["activations"])
        assert told["activation"] == pytest.approx(float(self.sae.encode(x)[:, 584].mean()), abs=1e-2, rel=1e-3)
        assert math.isfinite(told["activation"])
