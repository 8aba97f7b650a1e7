"""Checkpoints of multimodal models: the text part is loaded alone, under the names of both generations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_actor.errors import ModelLoadError
from sae_actor.models.families import TEXT_PART
from tests.engine.damage import loaded
from tests.engine.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 77, 200, 31]])


def save_multimodal(folder: Path, model_type: str, text_type: str, *, old_names: bool, **config: Any) -> Any:
    """A checkpoint as transformers writes it, with a tensor of a vision tower; its text part as a model."""
    model: Any = tiny_model(text_type, **config)
    text, outer = ("language_model.model.", "language_model.") if old_names else ("model.language_model.", "")
    tensors = {
        text + name.removeprefix("model.") if name.startswith("model.") else outer + name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    tower = "vision_tower" if old_names else "model.vision_tower"
    tensors[f"{tower}.embeddings.weight"] = torch.zeros(3, 3)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text_config = {key: value for key, value in model.config.to_dict().items() if key != "architectures"}
    text_config.pop("tie_word_embeddings")
    settings = {
        "model_type": model_type,
        "text_config": text_config,
        "tie_word_embeddings": model.config.tie_word_embeddings,
        "eos_token_id": 256,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    tiny_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("old_names", [True, False], ids=["old names", "new names"])
@pytest.mark.parametrize("model_type", TEXT_PART)
def test_the_text_part_is_the_text_model(model_type: str, old_names: bool, tmp_path: Path) -> None:
    text_type = "ministral3" if model_type == "mistral3" else TEXT_PART[model_type]
    bare = save_multimodal(tmp_path / "model", model_type, text_type, old_names=old_names)
    model = loaded(tmp_path / "model")
    assert model.facts.model_type == text_type
    assert not [name for name, _ in model.network.named_parameters() if "vision" in name]
    with torch.inference_mode():
        torch.testing.assert_close(model.network(IDS).logits, bare(IDS).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_what_the_whole_model_says(tied: bool, tmp_path: Path) -> None:
    """The text config leaves it out, and its default is another in some families."""
    bare = save_multimodal(tmp_path / "model", "qwen3_5", "qwen3_5_text", old_names=False, tie_word_embeddings=tied)
    model = loaded(tmp_path / "model")
    assert model.network.config.tie_word_embeddings is tied
    with torch.inference_mode():
        torch.testing.assert_close(model.network(IDS).logits, bare(IDS).logits)


def test_a_text_part_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    save_multimodal(tmp_path / "model", "mistral3", "llama", old_names=False)
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"]["model_type"] = "mamba"
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelLoadError, match="models of type mamba are not supported"):
        loaded(tmp_path / "model")
