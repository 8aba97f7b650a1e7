"""Loading a model as the worker does, and ways to spoil its folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_actor.engine.model.loading import LoadedModel, load_model
from tests.engine.asking import load, no_progress


def loaded(
    model: str | Path,
    *,
    revision: str = "main",
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
) -> LoadedModel:
    effect = load(str(model), revision=revision, dtype=dtype, device=device, quantization=quantization)
    return load_model(effect, no_progress, threading.Event())


def set_in_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
