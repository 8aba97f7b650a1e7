"""One small SAE of every family, written as its release writes it, with its formula in numpy beside it.

The formulas are those of the families' own libraries, written out; nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_actor.domain.refs import HookPoint
from tests.formats.scopes import (
    gemma_scope,
    gemma_scope_2,
    gemma_scope_2_affine,
    gemma_scope_embedding,
    gemma_scope_transcoder,
    llama_scope_r1,
    llama_scope_transcoder,
)
from tests.formats.written import (
    D_IN,
    D_OUT,
    D_SAE,
    LINEAR,
    Array,
    Formula,
    Written,
    linear,
    plain,
    put,
    top,
    weights,
)


def _relu(w: dict[str, Tensor], subtract: bool) -> tuple[Formula, Formula]:
    p = plain(w)

    def encode(x: Array) -> Array:
        z = x - p["b_dec"] if subtract else x
        return np.maximum(z @ p["W_enc"] + p["b_enc"], 0)

    return encode, lambda x: encode(x) @ p["W_dec"] + p["b_dec"]


def sparsify_skip_transcoder(root: Path) -> Written:
    path = root / "layers.4.mlp"
    w = weights(8)
    p = plain(w)
    encoder = linear(w, *LINEAR)
    tensors = {name: encoder[name] for name in LINEAR[:2]} | {name: w[name] for name in ("W_dec", "b_dec", "W_skip")}
    put(path, "sae.safetensors", tensors)
    config = {"activation": "topk", "expansion_factor": 99, "num_latents": D_SAE, "k": 6, "multi_topk": True}
    put(path, "cfg.json", config={**config, "skip_connection": True, "transcode": True, "d_in": D_IN})
    put(root, "config.json", config={"model": "meta-llama/Llama-3.2-1B", "hookpoints": ["layers.4.mlp"]})

    def encode(x: Array) -> Array:
        return top(x @ p["W_enc"] + p["b_enc"], 6)

    return Written(
        path,
        "sparsify",
        "skip_transcoder",
        encode,
        lambda x: encode(x) @ p["W_dec"] + p["b_dec"] + x @ p["W_skip"].T,
        HookPoint("mlp_in", 4),
        HookPoint("mlp_out", 4),
        weights=["sae.safetensors"],
        trained_on="meta-llama/Llama-3.2-1B",
    )


def sparsify_groupmax(root: Path) -> Written:
    path = root / "layers.2"
    w = weights(9)
    p = plain(w)
    encoder = linear(w, *LINEAR)
    put(path, "sae.safetensors", {n: encoder[n] for n in LINEAR[:2]} | {"W_dec": w["W_dec"], "b_dec": w["b_dec"]})
    put(path, "cfg.json", config={"activation": "groupmax", "num_latents": D_SAE, "k": 8, "d_in": D_IN})

    def encode(x: Array) -> Array:
        h = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
        groups = h.reshape(len(x), 8, D_SAE // 8)
        return np.asarray((groups * (groups == groups.max(axis=2, keepdims=True))).reshape(len(x), D_SAE))

    return Written(
        path,
        "sparsify",
        "groupmax",
        encode,
        lambda x: encode(x) @ p["W_dec"] + p["b_dec"],
        HookPoint("resid_post", 2),
        weights=["sae.safetensors"],
    )


def openai_topk(root: Path) -> Written:
    path = root / "resid_post_attn_v5_32k" / "autoencoders"
    w = weights(10)
    p = plain(w)
    tensors: dict[str, Any] = linear(w, "encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
    tensors |= {"stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long), "activation": "TopK"}
    put(path, "7.pt", tensors | {"activation_state_dict": {"k": 5, "postact_fn": "ReLU"}})

    def normalised(x: Array) -> tuple[Array, Array, Array]:
        mean, std = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
        return (x - mean) / (std + 1e-5), mean, std

    def encode(x: Array) -> Array:
        return top((normalised(x)[0] - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 5)

    def forward(x: Array) -> Array:
        _, mean, std = normalised(x)
        return (encode(x) @ p["W_dec"] + p["b_dec"]) * std + mean

    return Written(
        path / "7.pt",
        "openai",
        "topk",
        encode,
        forward,
        HookPoint("resid_mid", 7),
        pickled=True,
        weights=["7.pt"],
        trained_on="gpt2",
    )


def openai_relu_tied(root: Path) -> Written:
    path = root / "mlp_post_act" / "autoencoders"
    w = weights(11)
    w["W_dec"] = w["W_enc"].T.contiguous()
    p = plain(w)
    put(
        path,
        "0.pt",
        {
            "encoder.weight": w["W_dec"],
            "latent_bias": w["b_enc"],
            "decoder.linear.weight": w["W_dec"],
            "pre_bias": w["b_dec"],
            "activation": "ReLU",  # type: ignore[dict-item]  # the release keeps a name beside the tensors
        },
    )

    def encode(x: Array) -> Array:
        return np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)

    return Written(
        path / "0.pt",
        "openai",
        "standard",
        encode,
        lambda x: encode(x) @ p["W_dec"] + p["b_dec"],
        HookPoint("mlp_act", 0),
        pickled=True,
        weights=["0.pt"],
        trained_on="gpt2",
    )


def goodfire(root: Path) -> Written:
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    w = weights(12, dtype=torch.bfloat16)
    names = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")
    put(root, name, linear(w, *names))
    encode, forward = _relu(w, subtract=False)
    return Written(
        root,
        "goodfire",
        "standard",
        encode,
        forward,
        HookPoint("resid_post", 19),
        pickled=True,
        weights=[name],
        trained_on="meta-llama/Llama-3.1-8B-Instruct",
    )


def deepseek_r1(root: Path) -> Written:
    name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    w = weights(13, dtype=torch.bfloat16)
    put(root, name, linear(w, *LINEAR))
    encode, forward = _relu(w, subtract=False)
    return Written(
        root,
        "deepseek_r1",
        "standard",
        encode,
        forward,
        HookPoint("resid_post", 19),
        pickled=True,
        weights=[name],
        trained_on="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    )


def kissane(root: Path) -> Written:
    name = "gpt2-small_L5_Hcat_z_lr1.20e-03"
    w = weights(14)
    put(root, f"{name}.pt", {k: w[k] for k in ("W_enc", "b_enc", "W_dec", "b_dec")})
    config = {"act_size": D_IN, "dict_size": D_SAE, "act_name": "blocks.5.attn.hook_z", "model_name": "gpt2-small"}
    put(root, f"{name}_cfg.json", config=config)
    encode, forward = _relu(w, subtract=True)
    return Written(
        root / f"{name}.pt",
        "kissane",
        "standard",
        encode,
        forward,
        HookPoint("attn_z", 5),
        pickled=True,
        weights=[f"{name}.pt"],
        trained_on="gpt2-small",
    )


def qwen_scope(root: Path) -> Written:
    path = root / "SAE-Res-Qwen3-8B-W64K-L0_7"
    w = weights(15)
    p = plain(w)
    put(path, "layer3.sae.pt", linear(w, "W_enc", "b_enc", "W_dec", "b_dec"))
    put(path, "layer4.sae.pt", linear(weights(16), "W_enc", "b_enc", "W_dec", "b_dec"))

    def encode(x: Array) -> Array:
        return top(x @ p["W_enc"] + p["b_enc"], 7)

    return Written(
        path / "layer3.sae.pt",
        "qwen_scope",
        "topk",
        encode,
        lambda x: encode(x) @ p["W_dec"] + p["b_dec"],
        HookPoint("resid_post", 3),
        pickled=True,
        weights=["layer3.sae.pt"],
        trained_on="Qwen/Qwen3-8B",
        repository_id="Qwen/SAE-Res-Qwen3-8B-W64K-L0_7",
    )


def layer_file(root: Path) -> Written:
    w = weights(17, D_OUT)
    tensors = {"W_enc": w["W_enc"].T.contiguous(), "b_enc": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    put(root, "layer_6.safetensors", tensors)
    put(root, "layer_7.safetensors", tensors)
    put(root, "config.yaml", text="model_name: Qwen/Qwen3-0.6B\nfeature_input_hook: mlp.hook_in\n")
    put(root, "wanb-config.yaml", text=f"d_model:\n  value: {D_IN}\nd_feature:\n  value: {D_SAE}\n")
    encode, forward = _relu(w, subtract=False)
    return Written(
        root / "layer_6.safetensors",
        "layer_file",
        "transcoder",
        encode,
        forward,
        HookPoint("mlp_in", 6),
        HookPoint("mlp_out", 6),
        weights=["layer_6.safetensors"],
        trained_on="Qwen/Qwen3-0.6B",
        d_out=D_OUT,
    )


FAMILIES: tuple[Callable[[Path], Written], ...] = (
    gemma_scope,
    gemma_scope_embedding,
    gemma_scope_transcoder,
    gemma_scope_2,
    gemma_scope_2_affine,
    llama_scope_transcoder,
    llama_scope_r1,
    sparsify_skip_transcoder,
    sparsify_groupmax,
    openai_topk,
    openai_relu_tied,
    goodfire,
    deepseek_r1,
    kissane,
    qwen_scope,
    layer_file,
)
