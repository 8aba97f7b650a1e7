"""`log explain --methods`: every field that a second lab would ask for, and what to cite."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_actor.cli.render.citations import entries
from sae_actor.cli.render.methods import methods
from tests.cli.conftest import Ran
from tests.cli.logs import a_life, admitted, ended, write
from tests.domain.dsl import MODEL, REPOSITORY, A

Command = Callable[..., Ran]
ENTRY = re.compile(r"@(misc|inproceedings)\{([A-Za-z0-9.:_-]+),\n(  .*\n)*?\}", re.MULTILINE)


@pytest.fixture
def explain(tmp_path: Path, command: Command) -> Command:
    story = admitted(a_life(), "gen-3", baseline=True)
    write(tmp_path / "log", ended(story, "gen-3"))

    def run(*argv: str) -> Ran:
        return command("log", "explain", *argv, "--data-dir", str(tmp_path / "log"))

    return run


def view_of(explain: Command, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explain(name, "--json").out)
    return found


def test_every_field_that_a_second_lab_would_ask_for(explain: Command) -> None:
    ran = explain("gen-2", "--methods")
    assert (ran.code, ran.err) == (0, "")
    text, *bibtex = ran.out.rstrip("\n").split("\n\n")
    assert "\n" not in text
    view = view_of(explain, "gen-2")
    (sae,) = view["intervention"]
    wanted = {
        "model": f"generated with {MODEL} (revision main, commit {'0' * 40}) in float32 on cpu.",
        "its files": f"model.safetensors {'c' * 64}",
        "tokenizer": f"tokenizer {'d' * 64}",
        "SAE": f"The SAE {A} ({REPOSITORY} ",
        "digest": f"sha256 of its weights {sae['weights_sha256']}",
        "architecture": f"architecture {sae['architecture']}",
        "hook point": "read at hook point resid_post.1 and wrote at resid_post.1 in mode steer, computing in float32.",
        "edits": "; ".join(edit["words"] for edit in sae["steering"]),
        "units": "raw units: they multiply the decoder row",
        "exclusions": "An attention sink is the first token, and any position whose norm",
        "digest of the intervention": view["intervention_sha256"],
        "tokenization": "The prompt of 5 tokens was tokenised as the tokenizer does by default.",
        "token ids": f"{'1' * 64}, of those generated {'2' * 64}, salt {'0' * 32}",
        "sampling": 'Tokens were chosen at temperature 0.7 with seed 7, at most 16; top_p 0.9, stop ["\\n"].',
        "receipt": "3 tokens were generated (stop); 6 positions were written to, 1 excluded, with a mean relative norm",
        "software": "torch 2.13.0",
        "digest of the environment": view["model"]["environment_sha256"],
        "reproducibility": "Reproducibility: float32; the same request, seed and environment give the same tokens.",
        "evidence": f"On record as gen-2, event 12 of a log with head 15 {view['log']['head']['hash']}",
    }
    assert [name for name, words in wanted.items() if words not in text] == []
    assert len(bibtex) == 5
    told = json.loads(explain("gen-2", "--methods", "--json").out)
    assert told == {"generation_id": "gen-2", "methods": text, "bibtex": bibtex}


def test_a_baseline(explain: Command) -> None:
    text = explain("gen-3", "--methods").out
    assert "No intervention was active: the request asked for the baseline." in text
    assert "The SAE" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deterministic": True}, "Reproducibility: deterministic; alone on the device"),
        ({"model": {"dtype": "bfloat16"}, "batch": [1, 8]},
         "whose logits are almost the same, depending on the batch (it shared its steps with up to 7 others)."),
        ({"model": {"quantization": "int8"}}, "in float32, quantised (int8) on cpu."),
        ({"model": {"quantization": "int8"}}, "Reproducibility: up to near-ties"),
        ({"sink_window": 512}, "of the prompt, of its first 512 positions if it has more."),
        ({"tokenization": {"prepend_bos": True}}, "was tokenised with prepend_bos true."),
        ({"kind": "chat"}, "was tokenised with the model's chat template."),
        ({"sampling": {"temperature": 0.0}}, "Tokens were chosen greedily with seed 7"),
        ({"sampling": {"skip_special_tokens": False}}, "skip_special_tokens false"),
        ({"sampling": None}, "The sampling is not on record."),
        ({"model": None}, "The log does not say which model was loaded."),
    ],
)  # fmt: skip
def test_what_else_there_is(change: dict[str, Any], words: str, explain: Command) -> None:
    view = view_of(explain, "gen-2")
    for name, value in change.items():
        view[name] = {**view[name], **value} if isinstance(view[name], dict) and isinstance(value, dict) else value
    assert words in methods(view)["methods"]


def test_bibtex_of_what_is_known(explain: Command) -> None:
    """By libraries and formats; of a folder there is no address; nothing twice; braces that match."""
    view = view_of(explain, "gen-2")
    view["model"]["environment"] |= {"transformers": "5.23.0", "sae_actor": "0.1.0"}
    view["model"] |= {"model_id": "org/some_model", "quantization": "nf4"}
    sae = view["intervention"][0]
    formats = ("sae_lens", "gemma_scope", "llama_scope", "openai", "sae_lens", "kissane")
    view["intervention"] = [{**sae, "format": name} for name in formats]
    found = entries(view)
    keys = [ENTRY.fullmatch(entry) for entry in found]
    assert [key[2] for key in keys if key is not None] == [
        "sae-actor", "model-some_model", "ansel2024pytorch2", "wolf-etal-2020-transformers", "dettmers2023qlora",
        f"sae-{REPOSITORY.rpartition('/')[2]}", "bloom2024saetrainingcodebase", "lieberum-etal-2024-gemma",
        "he2024llamascope", "gao2024scaling",
    ]  # fmt: skip
    assert all(entry.count("{") == entry.count("}") for entry in found)
    assert r"title = {org/some\_model}" in found[1]
    assert "\\url{https://huggingface.co/org/some_model}" in found[1]
    assert f"commit {'0' * 40}" in found[1]
    view["model"] |= {"model_id": "/models/mine", "commit": None}
    (mine,) = [entry for entry in entries(view) if entry.startswith("@misc{model-")]
    assert mine.startswith("@misc{model-mine,")
    assert "url" not in mine
    assert "local files" in mine
