"""Small random models, tokenizers and SAEs, written to a folder as the real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 260
END = 256
HIDDEN = 32
LAYERS = 3
CONTEXT = 128

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'wizard' %}"
    "{{ raise_exception('only user, assistant and system speak') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{% if mood is defined %}({{ mood }}){% endif %}"
)

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_GEMMA_LIKE = {**_LLAMA_LIKE, "head_dim": 12}
_MOE_LIKE = {
    **_LLAMA_LIKE,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
_QWEN3_5_LIKE = {
    **_GEMMA_LIKE,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": 16},
    "qwen2": _LLAMA_LIKE,
    "qwen3": _GEMMA_LIKE,
    "gemma": _GEMMA_LIKE,
    "gemma2": {**_GEMMA_LIKE, "sliding_window": 16, "query_pre_attn_scalar": 12},
    "gemma3_text": {**_GEMMA_LIKE, "sliding_window": 16, "query_pre_attn_scalar": 12},
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_inner": 48, "n_positions": CONTEXT},
    "gpt_neox": {**_LLAMA_LIKE, "use_parallel_residual": True},
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    },
    "gpt_oss": {**_GEMMA_LIKE, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {**_LLAMA_LIKE, "num_key_value_heads": 4},
    "phi3": _LLAMA_LIKE,
    "ministral": {**_GEMMA_LIKE, "sliding_window": 16},
    "ministral3": _GEMMA_LIKE,
    "qwen2_moe": {**_MOE_LIKE, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": {**_MOE_LIKE, "head_dim": 12, "mlp_only_layers": [0]},
    "qwen3_5_text": _QWEN3_5_LIKE,
    "qwen3_5_moe_text": {**_MOE_LIKE, **_QWEN3_5_LIKE, "shared_expert_intermediate_size": 24},
    "gemma3n_text": {
        **_GEMMA_LIKE,
        "num_kv_shared_layers": 0,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0, 0.0],
        "intermediate_size": [48, 48, 48],
    },
    "gemma4_text": {
        **_GEMMA_LIKE,
        "global_head_dim": 16,
        "sliding_window": 16,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "olmo": _LLAMA_LIKE,
    "olmo2": _LLAMA_LIKE,
    "olmo3": {**_LLAMA_LIKE, "sliding_window": 16},
    "olmoe": {**_LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2},
    "exaone4": {**_GEMMA_LIKE, "sliding_window": 16, "sliding_window_pattern": 2},
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {**_LLAMA_LIKE, "residual_multiplier": 0.3},
    "smollm3": {**_LLAMA_LIKE, "no_rope_layers": [1, 0, 1]},
    "seed_oss": _GEMMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "glm": {**_LLAMA_LIKE, "head_dim": 8},
    "glm4": {**_LLAMA_LIKE, "head_dim": 8},
    "deepseek_v3": {
        **_LLAMA_LIKE,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
    },
    "llama4_text": {
        **_LLAMA_LIKE,
        "head_dim": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 16,
    },
    "starcoder2": {**_LLAMA_LIKE, "sliding_window": 16},
    "cohere": {**_LLAMA_LIKE, "logit_scale": 1.0},
    "cohere2": {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 16, "logit_scale": 1.0},
    "nemotron": {**_LLAMA_LIKE, "head_dim": 8},
    "gptj": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "attention_types": [[["global", "local", "global"], 1]],
        "num_heads": 4,
        "max_position_embeddings": CONTEXT,
        "intermediate_size": 48,
        "window_size": 16,
    },
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4, "seq_length": CONTEXT},
    "falcon": {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "ffn_hidden_size": 48,
    },
}
"""Model type → a small config of it."""


def tiny_model(model_type: str, *, seed: int = 0, **config: Any) -> torch.nn.Module:
    """A random model of that family, livelier than freshly initialised ones: norms and biases are random too."""
    settings = AutoConfig.for_model(
        model_type,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
        **{"vocab_size": VOCABULARY, **CONFIGS[model_type], **config},
    )
    torch.manual_seed(seed)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.15 * torch.randn_like(parameter))
    return model


def tiny_tokenizer(*, chat: bool = True, adds_bos: bool = False) -> Any:
    """One token per byte, ids 0 to 255 in no particular order, four special tokens behind. The one that ends a text
    begins one too, as GPT-2's does, if it is asked for or `adds_bos`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_special_tokens(specials)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], END)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0], bos_token=specials[0])
    fast.add_special_tokens({"additional_special_tokens": specials[1:]})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(
    folder: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    chat: bool = True,
    adds_bos: bool = False,
    template: str | None = None,
    **config: Any,
) -> Path:
    """Write model and tokenizer; the folder."""
    model: Any = tiny_model(model_type, seed=seed, **config)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer(chat=chat, adds_bos=adds_bos)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_sae(
    folder: Path, *, d_in: int = HIDDEN, d_sae: int = 24, hook: str = "blocks.1.hook_resid_post", seed: int = 1
) -> Path:
    """Write a random ReLU SAE in the SAELens layout; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(d_sae, d_in, generator=generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    save_file(
        {
            "W_enc": decoder.T.contiguous(),
            "b_enc": -0.1 * torch.rand(d_sae, generator=generator),
            "W_dec": decoder,
            "b_dec": 0.1 * torch.randn(d_in, generator=generator),
        },
        folder / "sae_weights.safetensors",
    )
    settings = {
        "architecture": "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"model_name": "tiny", "hook_name": hook, "sae_lens_version": "6.0.0"},
    }
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder
