"""What the SAEs of every family are written with: weights, files, and what must come out of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from sae_actor.domain.refs import HookPoint

Array = NDArray[np.float64]
Formula = Callable[[Array], Array]

D_IN, D_SAE, D_OUT = 12, 40, 20


@dataclass
class Written:
    """An SAE on disk, and what must come out of it."""

    path: Path
    format: str
    architecture: str
    encode: Formula
    forward: Formula
    hook_point: HookPoint | None
    hook_point_out: HookPoint | None = None
    pickled: bool = False
    weights: list[str] = field(default_factory=list)
    repository_id: str | None = None
    trained_on: str | None = None
    d_out: int = D_IN


def weights(seed: int, d_out: int = D_IN, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights in mathematical orientation; decoder rows of norm 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    found = {
        "W_enc": normal(D_IN, D_SAE) / math.sqrt(D_IN),
        "b_enc": normal(D_SAE) * 0.2,
        "W_dec": torch.nn.functional.normalize(normal(D_SAE, d_out), dim=1),
        "b_dec": normal(d_out) * 0.3,
        "threshold": normal(D_SAE).abs() * 0.3,
        "W_skip": normal(d_out, D_IN) / math.sqrt(D_IN),
    }
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def plain(w: dict[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in w.items()}


def top(h: Array, k: int) -> Array:
    """The k largest of each row, those above 0."""
    f = np.zeros_like(h)
    for t, row in enumerate(h):
        for i in np.argsort(-row)[:k]:
            f[t, i] = max(row[i], 0.0)
    return f


def linear(w: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Under the names given for W_enc, b_enc, W_dec, b_dec, in torch.nn.Linear orientation."""
    tensors = (w["W_enc"].T.contiguous(), w["b_enc"], w["W_dec"].T.contiguous(), w["b_dec"])
    return dict(zip(names, tensors, strict=True))


LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def put(path: Path, name: str, tensors: dict[str, Tensor] | None = None, config: Any = None, text: str = "") -> None:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    if tensors is not None and name.endswith(".safetensors"):
        save_file(tensors, path / name)
    elif tensors is not None:
        torch.save(tensors, path / name)
    else:
        (path / name).write_text(text or json.dumps(config))


def npz(path: Path, tensors: dict[str, Tensor], save: Callable[..., None] = np.savez) -> None:
    save(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
