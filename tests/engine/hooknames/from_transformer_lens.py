"""What the hooks of transformer_lens hold on the models of `shaped`: run by an interpreter that has it.

    python from_transformer_lens.py FILE

FILE gets a safetensors file: `<variant>/<model type>/<hook below the block>` → [positions, width] of layer `LAYER`.
Variants: `hooked` and `hooked.folded` are HookedTransformer (up to 3.x) without and with its weight processing,
`bridge` and `bridge.folded` TransformerBridge (from 3.x) without and with its compatibility mode.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.engine.hooknames.shaped import HEAD, HEADS, HIDDEN, IDS, INNER, LAYER, LAYERS, VOCABULARY, shaped

NAMES = {
    "gpt2": "gpt2",
    "llama": "meta-llama/Llama-2-7b-hf",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-1b-pt",
    "gpt_neox": "EleutherAI/pythia-70m",
}


def hooked(model_type: str, *, fold: bool) -> Any:
    lens = importlib.import_module("transformer_lens")
    conversions = importlib.import_module("transformer_lens.pretrained.weight_conversions")
    network = shaped(model_type)
    rms = model_type in ("llama", "gemma2", "gemma3_text")
    settings: dict[str, Any] = {
        "n_layers": LAYERS, "d_model": HIDDEN, "n_ctx": 64, "d_head": network_head(model_type), "n_heads": HEADS,
        "d_mlp": INNER, "d_vocab": VOCABULARY, "act_fn": "gelu_new", "normalization_type": "RMS" if rms else "LN",
        "eps": network_eps(network), "use_hook_mlp_in": True, "device": "cpu", "seed": 0,
    }  # fmt: skip
    if rms:
        settings |= {
            "positional_embedding_type": "rotary", "rotary_dim": network_head(model_type), "gated_mlp": True,
            "final_rms": True, "rotary_adjacent_pairs": False, "n_key_value_heads": 1, "act_fn": "silu",
        }  # fmt: skip
    if model_type.startswith("gemma"):
        settings |= {
            "act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True, "use_local_attn": True,
            "window_size": 32, "attn_types": ["local", "global"] * LAYERS, "original_architecture": "Gemma",
        }  # fmt: skip
    if model_type == "gemma2":
        settings |= {"attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0}
    if model_type == "gemma3_text":
        settings |= {"use_qk_norm": True, "rotary_base": 1000000, "rotary_base_local": 10000}
        settings |= {"attn_types": ["local"] * LAYERS}
    if model_type == "gpt_neox":
        settings |= {
            "act_fn": "gelu", "parallel_attn_mlp": True, "positional_embedding_type": "rotary",
            "rotary_dim": int(network_head(model_type) * rotary_part(network.config)),
            "rotary_adjacent_pairs": False,
        }  # fmt: skip
    model = lens.HookedTransformer(lens.HookedTransformerConfig(**settings))
    convert = {
        "gpt2": "convert_gpt2_weights", "llama": "convert_llama_weights", "gpt_neox": "convert_neox_weights",
    }.get(model_type, "convert_gemma_weights")  # fmt: skip
    weights = getattr(conversions, convert)(network, model.cfg)
    if fold:
        model.load_and_process_state_dict(weights, center_writing_weights=not rms)
    else:
        model.load_and_process_state_dict(
            weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
    model.set_use_split_qkv_input(True)
    return model


def network_head(model_type: str) -> int:
    return HEAD if model_type.startswith("gemma") else HIDDEN // HEADS


def rotary_part(config: Any) -> float:
    """Under the name of the installed release of transformers."""
    if hasattr(config, "rotary_pct"):
        return float(config.rotary_pct)
    return float(config.rope_parameters["partial_rotary_factor"])


def network_eps(network: Any) -> float:
    config = network.config
    for name in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"):
        if hasattr(config, name):
            return float(getattr(config, name))
    raise AssertionError(config)


def bridge(model_type: str, *, fold: bool) -> Any:
    bridges = importlib.import_module("transformer_lens.model_bridge")
    network = shaped(model_type)
    network.config.architectures = [type(network).__name__]
    builder = importlib.import_module("transformer_lens.model_bridge.sources._bridge_builder")
    model = builder.build_bridge_from_module(network, type(network).__name__, hf_config=network.config)
    assert isinstance(model, bridges.TransformerBridge)
    if fold:
        model.enable_compatibility_mode(disable_warnings=True)
    for switch in ("set_use_hook_mlp_in", "set_use_split_qkv_input"):
        try:
            getattr(model, switch)(True)
        except Exception as error:  # not every architecture has it
            print(model_type, switch, str(error)[:100])
    return model


def hooks(model: Any) -> dict[str, torch.Tensor]:
    _, cache = model.run_with_cache(torch.tensor([IDS]))
    found = {}
    for name, value in dict(cache).items():
        parts = name.split(".", 2)
        if parts[:2] != ["blocks", str(LAYER)] or not isinstance(value, torch.Tensor):
            continue
        if value.shape[:2] == (1, len(IDS)) and value.dim() >= 3 and value[0, 0].numel() > 1:
            found[parts[2]] = value[0].reshape(len(IDS), -1).float().clone().contiguous()
    return found


def main(target: str) -> None:
    variants = {}
    version = int(metadata.version("transformer-lens").split(".")[0])
    if version < 4:
        variants["hooked"] = hooked
    if version > 2:
        variants["bridge"] = bridge
    found = {}
    for variant, make in variants.items():
        for model_type in NAMES:
            for fold in (False, True):
                name = f"{variant}.folded" if fold else variant
                for hook, value in hooks(make(model_type, fold=fold)).items():
                    found[f"{name}/{model_type}/{hook}"] = value
    save_file(found, target)


if __name__ == "__main__":
    main(sys.argv[1])
