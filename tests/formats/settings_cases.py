"""One small SAE of every family with neutral settings, and for each of their keys another value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_actor.formats.readers import dictionary_learning, gemma_scope_2, kissane, layer_file, llama_scope, sparsify
from sae_actor.formats.settings import sae_lens_keys
from sae_actor.formats.settings.keys import Keys
from tests.formats import families, scopes
from tests.formats.dictionaries import dictionary
from tests.formats.readers.test_sae_lens import BASIC, FLAT, NESTED, OLDEST, write
from tests.formats.written import D_IN, D_OUT, D_SAE, put, weights


@dataclass(frozen=True)
class Case:
    """One settings object of a family."""

    name: str
    make: Callable[[Path], Path]
    """Writes the SAE with neutral settings; where it lies."""
    file: str
    """The settings, relative to the SAE's folder."""
    keys: Keys
    changed: dict[str, Any] = field(default_factory=dict)
    """Key that is heeded or refused → another value than the neutral one."""
    inside: tuple[str, ...] = ()
    """The section of the file that holds them."""
    at: str = ""
    """What the record puts before each key."""

    @property
    def known(self) -> list[str]:
        return [*self.keys.heeded, *self.keys.refused, *self.keys.irrelevant]


def sae_lens(config: dict[str, Any], *names: str, d_out: int = D_IN) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        w = weights(30, d_out)
        return write(root / "sae", config, {name: w[name] for name in (*BASIC, *names)})

    return make


def family(which: Callable[..., Any], *arguments: Any) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        path: Path = which(root, *arguments).path
        return path

    return make


TRANSCODER = {
    **NESTED,
    "architecture": "transcoder",
    "apply_b_dec_to_input": False,
    "d_out": D_OUT,
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "gpt2-small",
        "hook_name": "blocks.6.mlp.hook_in",
        "hook_name_out": "blocks.6.hook_mlp_out",
    },
}
TOPK = {**NESTED, "architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": False}
HEADS = {**NESTED, "metadata": {**NESTED["metadata"], "hook_name": "blocks.6.attn.hook_z"}}  # type: ignore[dict-item]

WIDTHS = {
    **dict.fromkeys(("d_in", "d_model", "input_dim", "activation_dim"), D_IN + 1),
    **dict.fromkeys(("d_sae", "dict_size", "hidden_dim", "d_hidden", "num_latents", "n_features"), D_SAE + 1),
    **dict.fromkeys(("d_out", "output_dim"), D_IN + 2),
    "expansion_factor": 99,
}
PLACE = {
    "model_name": "pythia-70m",
    "hook_name": "blocks.5.hook_resid_post",
    "hook_point": "blocks.5.hook_resid_post",
    "hook_layer": 5,
    "hook_point_layer": 4,
    "hook_head_index": 3,
    "hook_point_head_index": 3,
    "hook_name_out": "blocks.5.hook_resid_post",
    "hook_point_out": "blocks.5.hook_resid_post",
    "hook_layer_out": 5,
    "hook_head_index_out": 3,
    "hf_hook_name": "model.layers.5",
    "hf_hook_name_out": "model.layers.5",
    "prepend_bos": True,
    "model_from_pretrained_kwargs": {"center_writing_weights": True},
}
SAE_LENS = {
    **WIDTHS,
    **PLACE,
    "architecture": "jumprelu",
    "activation_fn": "tanh-relu",
    "activation_fn_str": "tanh-relu",
    "activation_fn_kwargs": {"k": 4},
    "k": 4,
    "rescale_acts_by_decoder_norm": True,
    "apply_b_dec_to_input": False,
    "normalize_activations": "layer_norm",
    "norm_scaling_factor": 0.5,
    "reshape_activations": "hook_z",
    "finetuning_scaling_factor": True,
    "metadata": {"prepend_bos": True},
    "sae_lens_version": "6.54.12",
}
MODEL = {
    "center_writing_weights": True,
    "fold_ln": True,
    "fold_value_biases": True,
    "revision": "step1000",
    "checkpoint_index": 12,
    "checkpoint_value": 1000,
}
LM_SAES = {
    "d_model": D_IN + 1,
    "d_sae": D_SAE + 1,
    "expansion_factor": 99,
    "hook_point_in": "blocks.3.hook_resid_mid",
    "hook_point_out": "blocks.3.hook_resid_mid",
    "act_fn": "relu",
    "jump_relu_threshold": 0.9,
    "norm_activation": "inference",
    "dataset_average_activation_norm": {"in": 3.0, "out": 3.0},
    "use_decoder_bias": False,
    "apply_decoder_bias_to_pre_encoder": True,
    "sparsity_include_decoder_norm": False,
    "use_glu_encoder": True,
    "sae_type": "crosscoder",
    "modalities": {"text": 3},
}
SET = {
    "model_name": "Qwen/Qwen3-8B",
    "model_kind": "cross_layer_transcoder",
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_resid_post",
    "activation": "topk",
    "activation_fn": "topk",
    "activation_function": "topk",
    "k": 8,
}


def uneven(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """An SAE of lm-saes whose decoder rows are of any norm."""

    def written(root: Path) -> Path:
        case = make(root)
        file = case.path / case.weights[0]

        tensors = load_file(file)
        scale = torch.linspace(0.4, 2.5, D_SAE).to(tensors["decoder.weight"].dtype)
        put(case.path, case.weights[0], tensors | {"decoder.weight": (tensors["decoder.weight"] * scale).contiguous()})
        path: Path = case.path
        return path

    return written


def set_of_layers(root: Path) -> Path:
    path: Path = families.layer_file(root).path
    (path.parent / "config.yaml").write_text(
        "model_name: Qwen/Qwen3-1.7B\nmodel_kind: transcoder_set\n"
        "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    return path


CASES = [
    Case("sae_lens flat", sae_lens(FLAT), "cfg.json", sae_lens_keys.TOP, SAE_LENS),
    Case("sae_lens oldest", sae_lens(OLDEST), "cfg.json", sae_lens_keys.TOP, SAE_LENS),
    Case("sae_lens v6", sae_lens(NESTED), "cfg.json", sae_lens_keys.TOP, {**SAE_LENS, "sae_lens_version": "5.11.0"}),
    Case("sae_lens v6 topk", sae_lens(TOPK), "cfg.json", sae_lens_keys.TOP, {**SAE_LENS, "sae_lens_version": "5.0.0"}),
    Case(
        "sae_lens v6 transcoder",
        sae_lens(TRANSCODER, d_out=D_OUT),
        "cfg.json",
        sae_lens_keys.TOP,
        {**SAE_LENS, "apply_b_dec_to_input": True, "sae_lens_version": "5.0.0"},
    ),
    *(
        Case(
            f"sae_lens metadata {name}",
            sae_lens(config, d_out=d_out),
            "cfg.json",
            sae_lens_keys.METADATA,
            {**PLACE, "sae_lens_version": "5.11.0"},
            ("metadata",),
            "metadata.",
        )
        for name, config, d_out in (("standard", NESTED, D_IN), ("transcoder", TRANSCODER, D_OUT))
    ),
    *(
        Case(
            f"sae_lens model {name}",
            sae_lens(config, d_out=d_out),
            "cfg.json",
            sae_lens_keys.MODEL,
            MODEL,
            ("metadata", "model_from_pretrained_kwargs"),
            "metadata.model_from_pretrained_kwargs.",
        )
        for name, config, d_out in (("stream", NESTED, D_IN), ("norm", TRANSCODER, D_OUT), ("heads", HEADS, D_IN))
    ),
    Case(
        "gemma_scope_2",
        family(scopes.gemma_scope_2),
        "config.json",
        gemma_scope_2.KEYS,
        {
            "hf_hook_point_in": "model.layers.3.output",
            "hf_hook_point_out": "model.layers.3.output",
            "width": D_SAE + 1,
            "model_name": "gemma-v3-4b-pt",
            "architecture": "topk",
            "affine_connection": True,
            "type": "transcoder",
        },
    ),
    Case("llama_scope", uneven(scopes.llama_scope_transcoder), "hyperparams.json", llama_scope.KEYS, LM_SAES),
    Case("llama_scope_r1", uneven(scopes.llama_scope_r1), "config.json", llama_scope.KEYS, LM_SAES),
    Case(
        "llama_scope norms",
        family(scopes.llama_scope_transcoder),
        "hyperparams.json",
        llama_scope.NORMS,
        {"in": 4.0, "out": 4.0},
        ("dataset_average_activation_norm",),
        "dataset_average_activation_norm.",
    ),
    *(
        Case(
            f"sparsify {which.__name__}",
            family(which),
            "cfg.json",
            sparsify.KEYS,
            {
                "d_in": D_IN + 1,
                "num_latents": D_SAE + 1,
                "expansion_factor": 98,
                "activation": other,
                "signed": True,
                "k": 4,
                "skip_connection": which is families.sparsify_groupmax,
                "transcode": which is families.sparsify_groupmax,
                "jumprelu": True,
            },
        )
        for which, other in ((families.sparsify_skip_transcoder, "groupmax"), (families.sparsify_groupmax, "topk"))
    ),
    Case(
        "sparsify run",
        family(families.sparsify_skip_transcoder),
        "../config.json",
        sparsify.RUN,
        {"model": "gpt2", "normalize_activations": 3.0, "revision": "step1000", "load_in_8bit": True},
        at="../config.json: ",
    ),
    *(
        Case(
            f"dictionary_learning {name}",
            family(dictionary, name),
            "config.json",
            dictionary_learning.TRAINER,
            {
                "trainer_class": "GatedSAETrainer",
                "dict_class": other,
                "activation_dim": D_IN + 1,
                "d_in": D_IN + 1,
                "dict_size": D_SAE + 1,
                "d_sae": D_SAE + 1,
                "k": 6,
                "layer": 9,
                "lm_name": "gpt2",
                "submodule_name": "mlp_out_layer_3",
            },
            ("trainer",),
            "trainer.",
        )
        for name, other in (("AutoEncoderTopK", "BatchTopKSAE"), ("BatchTopKSAE", "AutoEncoderTopK"))
    ),
    Case(
        "dictionary_learning buffer",
        family(dictionary, "AutoEncoder"),
        "config.json",
        dictionary_learning.BUFFER,
        {"io": "in", "d_submodule": D_IN + 1},
        ("buffer",),
        "buffer.",
    ),
    Case(
        "kissane",
        family(families.kissane),
        "gpt2-small_L5_Hcat_z_lr1.20e-03_cfg.json",
        kissane.KEYS,
        {
            "act_size": D_IN + 1,
            "dict_size": D_SAE + 1,
            "act_name": "blocks.4.attn.hook_z",
            "model_name": "pythia-70m",
            "layer": 4,
            "head": 3,
            "concat_heads": False,
        },
    ),
    Case("layer_file", set_of_layers, "config.yaml", layer_file.SET, SET),
    Case(
        "layer_file run",
        set_of_layers,
        "wandb-config.yaml",
        layer_file.RUN,
        {**SET, "d_model": D_IN + 1, "d_feature": D_SAE + 1},
        at="wandb-config.yaml: ",
    ),
]
