"""The classes of dictionary_learning, written as its trainers write them, with their formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_actor.domain.refs import HookPoint
from tests.formats.written import D_IN, D_SAE, LINEAR, Array, Written, linear, plain, put, top, weights

Encode = Callable[[dict[str, Array], Array], Array]


def _pre(p: dict[str, Array], x: Array, subtract: bool = True) -> Array:
    return np.asarray((x - p["b_dec"] * subtract) @ p["W_enc"] + p["b_enc"])


def _gated(p: dict[str, Array], x: Array) -> Array:
    pre = (x - p["b_dec"]) @ p["W_enc"]
    magnitude = np.maximum(np.exp(p["r_mag"]) * pre + p["mag_bias"], 0)
    return np.asarray((pre + p["gate_bias"] > 0) * magnitude)


def _over(p: dict[str, Array], x: Array, threshold: float) -> Array:
    f = np.maximum(_pre(p, x), 0)
    return f * (f > threshold)


def _tensors(name: str, w: dict[str, Tensor]) -> dict[str, Any]:
    encoder = linear(w, *LINEAR)
    straight = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    coder = {key: encoder[key] for key in LINEAR[:3]}
    k = {"k": torch.tensor(5, dtype=torch.int)}
    return {
        "AutoEncoder": coder | {"bias": w["b_dec"]},
        "AutoEncoderNew": encoder,
        "GatedAutoEncoder": {
            "encoder.weight": encoder["encoder.weight"],
            "decoder.weight": encoder["decoder.weight"],
            "decoder_bias": w["b_dec"],
            "r_mag": w["r_mag"],
            "gate_bias": w["gate_bias"],
            "mag_bias": w["mag_bias"],
        },
        "JumpReluAutoEncoder": straight | {"threshold": w["threshold"]},
        "AutoEncoderTopK": coder | {"b_dec": w["b_dec"], "threshold": torch.tensor(0.9)} | k,
        "BatchTopKSAE": coder | {"b_dec": w["b_dec"], "threshold": torch.tensor(0.35)} | k,
        "MatryoshkaBatchTopKSAE": straight
        | {"threshold": torch.tensor(-1.0), "group_sizes": torch.tensor([10, 30])}
        | k,
    }[name]


ENCODERS: dict[str, tuple[str, Encode]] = {
    "AutoEncoder": ("standard", lambda p, x: np.maximum(_pre(p, x), 0)),
    "AutoEncoderNew": ("standard", lambda p, x: np.maximum(_pre(p, x, subtract=False), 0)),
    "GatedAutoEncoder": ("gated", _gated),
    "JumpReluAutoEncoder": (
        "jumprelu",
        lambda p, x: _pre(p, x, subtract=False) * (_pre(p, x, subtract=False) > p["threshold"]),
    ),
    "AutoEncoderTopK": ("topk", lambda p, x: top(_pre(p, x), 5)),
    "BatchTopKSAE": ("jumprelu", lambda p, x: _over(p, x, 0.35)),
    "MatryoshkaBatchTopKSAE": ("jumprelu", lambda p, x: np.maximum(_pre(p, x), 0)),
}


def dictionary(root: Path, name: str, **trainer: Any) -> Written:
    """An SAE of the class `name`; `trainer` overrides keys of its config (None leaves one out)."""
    path = root / "resid_post_layer_3" / "trainer_0"
    w = weights(20)
    generator = torch.Generator().manual_seed(21)
    w |= {key: torch.randn(D_SAE, generator=generator) * 0.3 for key in ("r_mag", "gate_bias", "mag_bias")}
    p = plain(w)
    put(path, "ae.pt", _tensors(name, w))
    config = {
        "trainer_class": "SomeTrainer",
        "dict_class": name,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_3",
        "k": 5 if "k" in _tensors(name, w) else None,
    } | trainer
    kept = {key: value for key, value in config.items() if value is not None}
    put(path, "config.json", config={"trainer": kept, "buffer": {"ctx_len": 128}})
    architecture, encode = ENCODERS[name]
    return Written(
        path,
        "dictionary_learning",
        architecture,
        lambda x: encode(p, x),
        lambda x: encode(p, x) @ p["W_dec"] + p["b_dec"],
        HookPoint("resid_post", 3),
        pickled=True,
        weights=["ae.pt"],
        trained_on="EleutherAI/pythia-70m-deduped",
    )
