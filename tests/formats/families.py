"""One small SAE of every family, written as its release writes it, with its formula in numpy beside it.

The formulas are those of the families' own libraries, written out; nothing of the package is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    top,
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


def _relu(w: dict[str, Tensor], subtract: bool) -> tuple[Formula, Formula]:
    p = plain(w)

    def encode(x: Array) -> Array:
        z = x - p["b_dec"] if subtract else x
        return np.maximum(z @ p["W_enc"] + p["b_enc"], 0)

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
