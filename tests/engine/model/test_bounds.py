"""Settings that ask for endless many of something: refused in time, whoever reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_actor.engine.model import building
from sae_actor.engine.model.outline import outline_of
from sae_actor.engine.model.sizes import model_size
from sae_actor.errors import ModelLoadError
from tests.engine.damage import loaded, set_in_config

ENDLESS: dict[str, dict[str, Any]] = {
    "num_hidden_layers 1e+12": {"num_hidden_layers": 10**12},
    "n_layer 1e+12": {"model_type": "gpt2", "n_layer": 10**12},
    "num_labels 1e+12": {"num_labels": 10**12},
    "attention_types 1e+12": {"model_type": "gpt_neo", "attention_types": [[["global"], 10**12]]},
    "decoder_layers 1e+12": {"model_type": "bart", "decoder_layers": 10**12},
    "num_hidden_layers 1025": {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 1025},
    },
}


@pytest.mark.parametrize("said", ENDLESS)
def test_settings_that_would_take_all_memory(said: str, copied: Path) -> None:
    set_in_config(**ENDLESS[said])(copied)
    for reads in (lambda: model_size(str(copied), "main", "auto", "cpu"), lambda: outline_of(str(copied), "main")):
        with pytest.raises(ModelLoadError) as caught:
            reads()
        assert said in caught.value.detail


def test_such_a_model_is_not_loaded(copied: Path) -> None:
    set_in_config(num_hidden_layers=10**12)(copied)
    with pytest.raises(ModelLoadError, match="num_hidden_layers"):
        loaded(copied)


def test_modules_of_any_name_are_counted(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = model_size(str(copied), "main", "auto", "cpu")
    monkeypatch.setattr(building, "MOST_MODULES", 20)
    for reads in (lambda: model_size(str(copied), "main", "auto", "cpu"), lambda: outline_of(str(copied), "main")):
        with pytest.raises(ModelLoadError, match="more than 20 modules"):
            reads()
    monkeypatch.undo()
    assert model_size(str(copied), "main", "auto", "cpu") == plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": -5}, "-5 positions"),
        ({"max_position_embeddings": 10**30}, "1e\\+30 positions"),
        ({"vocab_size": 10**15}, "more memory than"),
    ],
)
def test_numbers_that_no_model_has(changes: dict[str, Any], said: str, copied: Path) -> None:
    set_in_config(**changes)(copied)
    with pytest.raises(ModelLoadError, match=said):
        model_size(str(copied), "main", "auto", "cpu")


@pytest.mark.parametrize("content", ["[" * 200_000, "[1]", '{"model_type":' * 100_000])
def test_a_file_that_is_no_object(content: str, copied: Path) -> None:
    (copied / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json of the model is not a JSON object"):
        model_size(str(copied), "main", "auto", "cpu")
