"""Small random models in four shapes, the same wherever they are built: weights come from their names.

Imports torch and transformers alone, so that an environment with another library of hooks can build them too.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

IDS = (5, 77, 31, 8)
LAYER = 1
"""Whose hooks are compared."""
HIDDEN, INNER, HEADS, HEAD, VOCABULARY, LAYERS = 16, 24, 2, 6, 260, 2

_LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
_GEMMA = {**_LLAMA, "head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": HIDDEN, "n_inner": INNER, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "n_ctx": 64},
    "llama": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt_neox": {**_LLAMA, "num_key_value_heads": HEADS, "use_parallel_residual": True},
}


def shaped(model_type: str) -> Any:
    """A model of that type whose norms' gains and whose biases are random too, in float32."""
    config = AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, pad_token_id=2, **SHAPES[model_type]
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        gain = "norm" in name.lower() or ".ln_" in name
        if gain and name.endswith("weight"):
            base = 0.0 if model_type.startswith("gemma") else 1.0
            parameter.copy_(base + 0.4 * noise.clamp(-2, 2))
        else:
            parameter.copy_((0.5 if parameter.dim() == 1 else 0.3) * noise)
    return model
