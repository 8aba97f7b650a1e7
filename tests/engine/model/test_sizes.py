"""What a model takes, said before and measured after it was loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoConfig

from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.model_runner import runner_for
from sae_actor.engine.model.sizes import model_size, with_free_memory
from sae_actor.errors import ModelLoadError, ModelNotFoundError
from tests.engine.asking import attach, load, no_progress
from tests.engine.damage import loaded, set_in_config
from tests.engine.tiny import CONTEXT, VOCABULARY, save_tiny_model

SHAPES = ("llama", "gemma4_text", "qwen3_5_text", "mixtral", "deepseek_v3", "gpt2", "falcon")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", SHAPES)
def test_what_is_said_is_what_is_taken(model_type: str, dtype: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type)
    said = model_size(str(folder), "main", dtype, "cpu")
    model = loaded(folder, dtype=dtype)
    with torch.inference_mode():
        cache = runner_for(model.network, VOCABULARY).size
    assert (said.model_type, said.dtype, said.device) == (model_type, dtype, "cpu")
    assert said.weights_bytes == pytest.approx(model.facts.memory_bytes, rel=0.05)
    assert said.kv_bytes_per_token == cache.per_position
    assert said.state_bytes == cache.fixed
    assert said.context_length == model.facts.context_length == CONTEXT


def test_only_the_settings_are_read(tiny_llama: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert model_size(str(tmp_path), "main", "auto", "auto") == replace(
        model_size(str(tiny_llama), "main", "auto", "auto"), model=str(tmp_path)
    )


@pytest.mark.parametrize(
    ("free", "reserved", "setting", "longest"),
    [
        (None, 0, 0, 1000),
        (10_000 + 2 * 100 * 256, 0, 0, 256),
        (10_000 + 2 * 100 * 256, 2 * 100 * 128, 0, 128),
        (10_000 + 50, 0, 0, 0),
        (9_000, 0, 0, 0),
        (10**9, 0, 100 * 130, 128),
        (10**9, 0, 0, 1000),
        (None, 0, 100 * 256, 256),
    ],
)
def test_the_longest_context(free: int | None, reserved: int, setting: int, longest: int, tiny_llama: Path) -> None:
    size = replace(
        model_size(str(tiny_llama), "main", "auto", "cpu"),
        weights_bytes=10_000,
        kv_bytes_per_token=100,
        context_length=1000,
    )
    found = with_free_memory(size, free, reserved, setting)
    assert found.free_bytes == free
    assert found.max_context == longest


@pytest.mark.anyio
async def test_what_is_loaded_leaves_before_another_model_comes(
    tiny_llama: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_actor.engine.engine.available", lambda _: 10**8)
    engine = TorchEngine(EngineSettings())
    try:
        empty = await engine.model_size(str(tiny_llama), "main", "auto", "cpu", 0)
        facts = await engine.load_model(load(str(tiny_llama)), no_progress)
        sae = await engine.attach(attach(5), str(tiny_sae))
        full = await engine.model_size(str(tiny_llama), "main", "auto", "cpu", 0)
    finally:
        await engine.close()
    assert empty.free_bytes == 10**8
    assert full.free_bytes == 10**8 + facts.memory_bytes + sae.device_bytes


def test_refusals(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder"):
        model_size(str(tmp_path / "nothing"), "main", "auto", "cpu")
    with pytest.raises(ModelLoadError, match="no device cuda:7"):
        model_size(str(copied), "main", "auto", "cuda:7")
    set_in_config(model_type="mamba")(copied)
    with pytest.raises(ModelLoadError, match="models of type mamba are not supported"):
        model_size(str(copied), "main", "auto", "cpu")
