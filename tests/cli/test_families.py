"""`families`: the table, and what a model that is not listed is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoConfig

from sae_actor.cli import main
from sae_actor.models.families import FAMILIES
from tests.fakes.hub_server import HubServer


def test_the_table_names_every_family_its_hook_points_and_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert set(FAMILIES) <= set(rows)
    assert "attn_z" in rows["llama"]
    assert rows["llama"].rstrip().endswith("—")
    assert "resid_mid: with use_parallel_residual true: attention and MLP" in rows["gpt_neox"]
    assert "mlp_act: each token passes some of the experts" in rows["mixtral"]
    assert lines[-1].startswith("Of multimodal models the text part is loaded: gemma3 (gemma3_text)")


def _unlisted(folder: Path) -> Path:
    """A model type that is not listed, built as Llama's."""
    config = AutoConfig.for_model(
        "arcee", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=260
    )
    config.save_pretrained(folder)
    return folder


def test_a_type_that_is_not_listed_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--check", str(_unlisted(tmp_path / "model"))]) == 0
    said = capsys.readouterr().out
    assert "model type arcee: not supported" in said
    assert "model.layers.{0,1}\n  self_attn: ArceeAttention" in said
    fitting = said.split("tests must show that they do the same):")[1]
    assert "llama, mistral, ministral, ministral3, qwen2, qwen3" in fitting
    assert "gpt2" not in fitting
    assert "gemma2" not in fitting


def test_only_the_settings_are_fetched_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (_unlisted(tmp_path / "model") / "config.json").read_bytes()
    with HubServer() as server:
        server.publish("org/arcee", {"config.json": settings, "model.safetensors": b"x", "tokenizer.json": b"{}"})
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        assert main(["families", "--check", "org/arcee"]) == 0
        assert "model type arcee" in capsys.readouterr().out
        fetched = {each.target.rsplit("/", 1)[-1] for each in server.asked("get", "store")}
        assert fetched == {"config.json"}
        assert main(["families", "--check", "org/nothing"]) != 0
        assert "the hub gives no settings of org/nothing at main" in capsys.readouterr().err


def test_settings_of_no_text_model_are_an_error_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert main(["families", "--check", str(tmp_path)]) != 0
    assert "reading the settings" in capsys.readouterr().err
