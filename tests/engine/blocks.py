"""The blocks of the model families, named once more: what lies between two hook points, and which are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from sae_actor.domain.refs import HookKind
from tests.engine.tiny import CONFIGS

ALL = (0, 1, 2)


class Chains(NamedTuple):
    """Modules below a block, in the order in which they run."""

    attention: tuple[str, ...] = ("self_attn.o_proj",)
    """attn_z → attn_out"""
    mlp: tuple[str, ...] = ("mlp",)
    """mlp_in → mlp_out"""
    act: tuple[str, ...] = ("mlp.down_proj",)
    """mlp_act → mlp_out"""


_POST_NORMED = Chains(
    ("self_attn.o_proj", "post_attention_layernorm"),
    ("mlp", "post_feedforward_layernorm"),
    ("mlp.down_proj", "post_feedforward_layernorm"),
)
_GPT2 = Chains(("attn.c_proj",), act=("mlp.c_proj",))
CHAINS: dict[str, Chains] = {
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_text", "olmo2", "olmo3", "exaone4"), _POST_NORMED),
    "gpt2": _GPT2,
    "gpt_neo": _GPT2._replace(attention=("attn.attention.out_proj",)),
    "gptj": Chains(("attn.out_proj",), act=("mlp.fc_out",)),
    "gpt_neox": Chains(("attention.dense",), act=("mlp.dense_4h_to_h",)),
    "falcon": Chains(("self_attention.dense",), act=("mlp.dense_4h_to_h",)),
    "bloom": Chains(
        ("self_attention.dense",),
        ("mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"),
        ("mlp.dense_4h_to_h",),
    ),
    "opt": Chains(("self_attn.out_proj",), ("fc1", "activation_fn", "fc2"), ("fc2",)),
    "phi": Chains(("self_attn.dense",), act=("mlp.fc2",)),
    "starcoder2": Chains(act=("mlp.c_proj",)),
    "llama4_text": Chains(mlp=("feed_forward",), act=("feed_forward.down_proj",)),
    "glm4": Chains(
        ("self_attn.o_proj", "post_self_attn_layernorm"),
        ("mlp", "post_mlp_layernorm"),
        ("mlp.down_proj", "post_mlp_layernorm"),
    ),
}
BLOCKS = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "falcon", "bloom"), "transformer.h"),
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in CONFIGS} | {
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "falcon-sequential": ("falcon", {"parallel_attn": False, "alibi": True, "bias": True}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-new-one-norm": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "gemma4_text-experts": (
        "gemma4_text",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    ),
    "gemma4_text-shared": ("gemma4_text", {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 3}),
}
"""Name → model type, and what its config says besides."""

_PARALLEL: dict[HookKind, tuple[int, ...]] = {"resid_mid": ALL}
_EXPERTS: dict[HookKind, tuple[int, ...]] = {"mlp_act": ALL}
_EXPERTS_AFTER_THE_FIRST: dict[HookKind, tuple[int, ...]] = {"mlp_act": (1, 2)}
LACKS: dict[str, dict[HookKind, tuple[int, ...]]] = {
    **dict.fromkeys(
        ("gpt_neox", "phi", "gptj", "cohere", "cohere2", "falcon", "falcon-new", "falcon-new-one-norm"), _PARALLEL
    ),
    "stablelm-parallel": _PARALLEL,
    **dict.fromkeys(("gpt_oss", "olmoe", "mixtral"), _EXPERTS),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "deepseek_v3"), _EXPERTS_AFTER_THE_FIRST),
    "llama4_text": {"mlp_act": (1,)},
    "qwen3_5_text": {"attn_z": (0, 1)},
    "qwen3_5_moe_text": {"attn_z": (0, 1), **_EXPERTS},
    "granite": {"attn_out": ALL, "mlp_out": ALL},
    "gemma3n_text": dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ALL),
    "gemma4_text-experts": {"mlp_in": ALL, "mlp_act": ALL},
}
"""Variant → hook points that it lacks, and the layers without them."""

IN_TURN = dict.fromkeys(
    ("gptj", "gpt_neo", "bloom", "falcon", "falcon-sequential", "falcon-new", "falcon-new-one-norm"),
    "its attention cannot be replaced",
)
"""Variant whose texts cannot share a step → why."""

MORE_IS_ADDED = ("gemma4_text",)
"""Families whose blocks add more to the stream than attention and MLP."""


def block_of(model: nn.Module, variant: str, layer: int) -> nn.Module:
    blocks = BLOCKS.get(variant.partition("-")[0], "model.layers")
    return model.get_submodule(blocks).get_submodule(str(layer))


def chain(block: nn.Module, paths: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
    """The modules one after the other, over rows [n, width]."""

    def run(x: Tensor) -> Tensor:
        for path in paths:
            out = block.get_submodule(path)(x[None])
            x = (out if isinstance(out, Tensor) else out[0]).reshape(x.shape[0], -1)
        return x

    return run
