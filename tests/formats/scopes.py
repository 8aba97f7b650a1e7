"""Gemma Scope and Llama Scope as small SAEs, each with a plain formula of its own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_actor.domain.refs import HookPoint
from tests.formats.written import (
    D_IN,
    D_OUT,
    D_SAE,
    LINEAR,
    Array,
    Formula,
    Written,
    linear,
    npz,
    plain,
    put,
    weights,
)


def column_major(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous().T if tensor.dim() == 2 else tensor


def _jumprelu(w: dict[str, Tensor]) -> tuple[Formula, Formula]:
    p = plain(w)

    def encode(x: Array) -> Array:
        h = x @ p["W_enc"] + p["b_enc"]
        return h * (h > p["threshold"])

    return encode, lambda x: encode(x) @ p["W_dec"] + p["b_dec"]


def gemma_scope(root: Path) -> Written:
    path = root / "gemma-scope-9b-pt-att" / "layer_7" / "width_16k" / "average_l0_40"
    path.mkdir(parents=True)
    w = weights(1)
    npz(path / "params.npz", {k: w[k] for k in w if k != "W_skip"})
    encode, forward = _jumprelu(w)
    return Written(
        path,
        "gemma_scope",
        "jumprelu",
        encode,
        forward,
        HookPoint("attn_z", 7),
        weights=["params.npz"],
        trained_on="gemma-2-9b",
    )


def gemma_scope_embedding(root: Path) -> Written:
    path = root / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    path.mkdir(parents=True)
    w = weights(2)
    p = plain(w)
    npz(path / "params.npz", {k: w[k] for k in w if k != "W_skip"}, np.savez_compressed)

    def encode(x: Array) -> Array:
        h = x @ (p["W_enc"] / math.sqrt(D_IN)) + p["b_enc"]
        return h * (h > p["threshold"])

    return Written(
        path / "params.npz",
        "gemma_scope",
        "jumprelu",
        encode,
        lambda x: encode(x) @ (p["W_dec"] * math.sqrt(D_IN)) + p["b_dec"],
        HookPoint("resid_pre", 0),
        weights=["params.npz"],
        trained_on="gemma-2-2b",
    )


def gemma_scope_transcoder(root: Path) -> Written:
    cache = root / "models--google--gemma-scope-2b-pt-transcoders"
    blobs, path = cache / "blobs", cache / "snapshots" / ("c" * 40) / "layer_3" / "width_16k" / "average_l0_5"
    blobs.mkdir(parents=True)
    path.mkdir(parents=True)
    w = weights(3, D_OUT)
    npz(blobs / "feed.npz", {k.lower(): column_major(w[k]) for k in w if k != "W_skip"})
    (path / "params.npz").symlink_to("../../../../../blobs/feed.npz")
    encode, forward = _jumprelu(w)
    return Written(
        path,
        "gemma_scope",
        "jumprelu_transcoder",
        encode,
        forward,
        HookPoint("mlp_in", 3, "gain"),
        HookPoint("mlp_out", 3),
        weights=["params.npz"],
        trained_on="gemma-2-2b",
        d_out=D_OUT,
    )


def gemma_scope_2(root: Path) -> Written:
    path = root / "attn_out" / "layer_13_width_16k_l0_medium"
    w = weights(4)
    put(path, "params.safetensors", {k.lower(): v for k, v in w.items() if k != "W_skip"})
    put(path, "examples.safetensors", {"examples": torch.zeros(3)})
    config = {
        "hf_hook_point_in": "model.layers.13.self_attn.o_proj.input",
        "hf_hook_point_out": "model.layers.13.self_attn.o_proj.input",
        "width": D_SAE,
        "model_name": "gemma-v3-1b-it",
        "architecture": "jump_relu",
        "l0": 50,
        "affine_connection": False,
        "type": "sae",
    }
    put(path, "config.json", config=config)
    encode, forward = _jumprelu(w)
    return Written(
        path,
        "gemma_scope_2",
        "jumprelu",
        encode,
        forward,
        HookPoint("attn_z", 13),
        weights=["params.safetensors"],
        trained_on="google/gemma-3-1b-it",
    )


def gemma_scope_2_affine(root: Path) -> Written:
    path = root / "gemma-scope-2-270m-pt" / "transcoder_all" / "layer_5_width_16k_l0_small_affine"
    w = weights(5, D_OUT)
    p = plain(w)
    tensors = {k.lower(): v for k, v in w.items() if k != "W_skip"}
    put(path, "params.safetensors", tensors | {"affine_skip_connection": w["W_skip"].T.contiguous()})
    encode, forward = _jumprelu(w)
    return Written(
        path,
        "gemma_scope_2",
        "jumprelu_skip_transcoder",
        encode,
        lambda x: forward(x) + x @ p["W_skip"].T,
        HookPoint("mlp_in", 5),
        HookPoint("mlp_out", 5),
        weights=["params.safetensors"],
        trained_on="google/gemma-3-270m-pt",
        d_out=D_OUT,
    )


def llama_scope_transcoder(root: Path) -> Written:
    path = root / "Llama3_1-8B-Base-L8TC-8x"
    w = weights(6, dtype=torch.bfloat16)
    p = plain(w)
    put(path, "checkpoints/final.safetensors", linear(w, *LINEAR))
    norm_in, norm_out, threshold = 6.0, 1.5, 0.25
    config = {
        "dtype": "torch.bfloat16",
        "hook_point_in": "blocks.8.ln2.hook_normalized",
        "hook_point_out": "blocks.8.hook_mlp_out",
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": 8,
        "d_model": D_IN,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": threshold,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm_in, "out": norm_out},
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
    }
    put(path, "hyperparams.json", config=config)
    s_in, s_out = math.sqrt(D_IN) / norm_in, math.sqrt(D_IN) / norm_out

    def encode(x: Array) -> Array:
        h = s_in * x @ p["W_enc"] + p["b_enc"]
        return np.maximum(h, 0) * (h > threshold * s_out)

    return Written(
        path,
        "llama_scope",
        "jumprelu_transcoder",
        encode,
        lambda x: (encode(x) @ p["W_dec"] + p["b_dec"]) / s_out,
        HookPoint("mlp_in", 8, "gain"),
        HookPoint("mlp_out", 8),
        weights=["checkpoints/final.safetensors"],
        trained_on="meta-llama/Llama-3.1-8B",
    )


def llama_scope_r1(root: Path) -> Written:
    path = root / "400M-Slimpajama-400M-OpenR1-Math-220k" / "L19R"
    w = weights(7)
    p = plain(w)
    norm, hook = 2.75, "blocks.19.hook_resid_post"
    tensors = linear(w, *LINEAR) | {
        "log_jumprelu_threshold": (w["threshold"] + 0.05).log(),
        f"dataset_average_activation_norm.{hook}": torch.tensor(norm),
    }
    put(path, "sae_weights.safetensors", tensors)
    config = {
        "d_model": D_IN,
        "expansion_factor": D_SAE / D_IN,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "norm_activation": "dataset-wise",
        "act_fn": "jumprelu",
    }
    put(path, "config.json", config=config)
    s, threshold = math.sqrt(D_IN) / norm, np.exp(plain(tensors)["log_jumprelu_threshold"])

    def encode(x: Array) -> Array:
        h = s * x @ p["W_enc"] + p["b_enc"]
        return h * (h > threshold)

    return Written(
        path,
        "llama_scope_r1",
        "jumprelu",
        encode,
        lambda x: (encode(x) @ p["W_dec"] + p["b_dec"]) / s,
        HookPoint("resid_post", 19),
        weights=["sae_weights.safetensors"],
    )
