"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors` (torch.nn.Linear orientation, bfloat16).

Inputs are scaled to a mean norm of √d: with s_in = √d / norm.in and s_out = √d / norm.out,

    h = s_in · x @ W_enc + b_enc;  f = max(h, 0) · 1[h > jump_relu_threshold · s_out];  x̂ = (f @ W_dec + b_dec) / s_out

The threshold is one number in the units of the raw output. With `sparsity_include_decoder_norm` it is h · ‖W_dec[i]‖
that has to exceed it; the released weights have those norms at 1. `top_k` is left over from training.
"""

from __future__ import annotations

import math
import re

from ...errors import SAEInvalidError, SAEUnsupportedError
from ..assembly import MATH, Sizes, assemble, layout
from ..config import Config
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..headers import TensorFile
from ..hook_names import parse_hook, parse_layer
from ..layout import Activation, Layout, Recipe
from ..settings.keys import DATA, LOGGING, MACHINE, NO_INITIAL, STORED_TYPE, TRAINING, Account, Keys, Refused, left

NAME = "llama_scope"
WEIGHTS = "checkpoints/final.safetensors"
CONFIG = "hyperparams.json"
NAMING = Naming((WEIGHTS,), ((CONFIG,),), needs_config=True)
FILES = NAMING.files
ARCHITECTURES = ("jumprelu", "standard", "jumprelu_transcoder", "transcoder")

KEYS = Keys(
    heeded={
        "d_model": "",
        "d_sae": "",
        "expansion_factor": "d_sae says the width",
        "hook_point_in": "",
        "hook_point_out": "",
        "act_fn": "",
        "jump_relu_threshold": "only act_fn jumprelu has it, and only where the weights have no thresholds",
        "norm_activation": "",
        "dataset_average_activation_norm": "only norm_activation dataset-wise has it",
        "use_decoder_bias": "",
        "apply_decoder_bias_to_pre_encoder": "",
        "sparsity_include_decoder_norm": "ReLU fires above 0, whatever the decoder's norms",
    },
    refused={
        "use_glu_encoder": Refused("a gated linear encoder is not computed here"),
        "sae_type": Refused("only plain SAEs and transcoders are read", (None, "sae")),
        "modalities": Refused("features of several modalities are not read"),
    },
    irrelevant={
        **left("act_fn is not topk; k is left over from training", "top_k", "k_warmup_steps", "initial_k"),
        **left(STORED_TYPE, "dtype"),
        **left(MACHINE, "device", "seed", "tp_size", "ddp_size", "use_triton_kernel", "strict_loading"),
        **left(MACHINE, "sparsity_threshold_for_triton_spmm_kernel", "sae_pretrained_name_or_path"),
        **left(NO_INITIAL, "bias_init_method", "init_decoder_norm", "init_encoder_norm"),
        **left(NO_INITIAL, "init_encoder_with_decoder_transpose", "init_log_jumprelu_threshold_value", "init_search"),
        **left(TRAINING, "lp", "p", "l1_coefficient", "l1_coefficient_warmup_steps", "use_batch_norm_mse"),
        **left(TRAINING, "use_ghost_grads", "sparsity_loss_type", "tanh_stretch_coefficient", "lr", "betas"),
        **left(TRAINING, "jumprelu_threshold_window", "jumprelu_threshold_grad_scale", "total_training_tokens"),
        **left("the stored decoder is used as it is", "decoder_exactly_fixed_norm", "force_unit_decoder_norm"),
        **left(DATA, "dataset", "dataset_path", "context_size"),
        **left(LOGGING, "wandb", "exp_name", "exp_result_path"),
    },
)
"""Those of lm-saes, the library that these SAEs were trained with, through its versions."""
NORMS = Keys(
    heeded={"in": "", "out": "an SAE of one place: that of its input"},
)

_MODEL = re.compile(r"(?:Llama3_1|Llama-3\.1)-8B(-Base|-Instruct)?-L")


def recognise(files: SaeFiles) -> bool:
    return files.has(CONFIG) and (files.has(WEIGHTS) or files.file is None)


def read(files: SaeFiles) -> Layout:
    cfg = files.config(CONFIG)
    KEYS.refuse(cfg)
    d_in = _needed(cfg, "d_model")
    d_sae = width(cfg, d_in) or _needed(cfg, "d_sae")
    sizes = Sizes(d_in, d_sae, d_in)
    scaled = is_scaled(cfg)
    norms = cfg.section("dataset_average_activation_norm") if scaled else Config({}, CONFIG, absent=True)
    name_in, name_out = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    transcoder = name_out is not None and name_out != name_in
    scale_in, scale_out = scales(scaled, norms.positive("in"), norms.positive("out") or norms.positive("in"), sizes)
    activation = activation_of(cfg)
    threshold = None
    if activation == "jumprelu":
        value = cfg.number("jump_relu_threshold")
        if value is None:
            raise SAEInvalidError(f"{CONFIG} does not say jump_relu_threshold", check="config.jump_relu_threshold")
        threshold = value / scale_out
    file = files.tensors(WEIGHTS)
    biased = has_bias(cfg, file)
    point = parse_hook(name_in, transcoder_input=transcoder)
    subtract = cfg.boolean("apply_decoder_bias_to_pre_encoder", default=False)
    of_norm = activation == "jumprelu" and cfg.boolean("sparsity_include_decoder_norm", default=True)
    account = Account()
    account.settle(cfg, KEYS)
    account.settle(norms, NORMS, "dataset_average_activation_norm.")
    return layout(
        file,
        assemble(file, MATH, sizes, optional=() if biased else ("b_dec",)),
        Recipe(
            activation=activation,
            subtract_b_dec=subtract,
            scale_in=scale_in,
            scale_out=scale_out,
            threshold=threshold,
            threshold_of_norm=of_norm,
        ),
        sizes,
        format=NAME,
        architecture=architecture_of(activation, transcoder),
        trained_on=_model(files.origin),
        trained_layer=parse_layer(name_in),
        hook_name=name_in,
        hook_point=point,
        hook_point_out=parse_hook(name_out) if transcoder else None,
        warnings=() if point else (f"the hook {str(name_in)[:100]} is no known hook point",),
        account=account,
        unit_decoder=of_norm,
    )


def _needed(cfg: Config, key: str) -> int:
    value = cfg.count(key)
    if value is None:
        raise SAEInvalidError(f"{cfg.where} does not say {key}", check=f"config.{key}")
    return value


def width(cfg: Config, d_in: int) -> int | None:
    """d_sae, or what the factor of expansion comes to where there is none."""
    if found := cfg.count("d_sae"):
        return found
    factor = cfg.positive("expansion_factor")
    return round(d_in * factor) if factor else None


def is_scaled(cfg: Config) -> bool:
    """Whether the mean norms of the dataset are divided out."""
    kind = cfg.text("norm_activation")
    if kind not in (None, "none", "inference", "dataset-wise"):
        raise SAEUnsupportedError(f"norm_activation {kind[:60]}", check="config.norm_activation", key="norm_activation")
    return kind in (None, "dataset-wise")


def has_bias(cfg: Config, file: TensorFile) -> bool:
    """Whether there is a b_dec, on which config and weights have to agree."""
    biased = cfg.boolean("use_decoder_bias", default=True)
    if not biased and any(alias.name in file for alias in MATH["b_dec"]):
        raise SAEInvalidError(
            f"{cfg.where}: use_decoder_bias is false, the weights have one", check="config.use_decoder_bias"
        )
    return biased


def scales(scaled: bool, norm_in: float | None, norm_out: float | None, sizes: Sizes) -> tuple[float, float]:
    """Factors on the input and the output, for the mean norms of the dataset."""
    if not scaled:
        return 1.0, 1.0
    if norm_in is None or norm_out is None:
        raise SAEInvalidError("the mean norm of the dataset is missing", check="config.dataset_average_activation_norm")
    return math.sqrt(sizes.d_in) / norm_in, norm_out / math.sqrt(sizes.d_out)


def activation_of(cfg: Config) -> Activation:
    name = (cfg.text("act_fn") or "jumprelu").lower()
    if name not in ("jumprelu", "relu"):
        raise SAEUnsupportedError(
            f"act_fn {name[:60]} of a checkpoint in training", check="config.act_fn", key="act_fn"
        )
    return "jumprelu" if name == "jumprelu" else "relu"


def architecture_of(activation: Activation, transcoder: bool) -> str:
    if transcoder:
        return "jumprelu_transcoder" if activation == "jumprelu" else "transcoder"
    return "jumprelu" if activation == "jumprelu" else "standard"


def _model(origin: Origin) -> str | None:
    for part in (*reversed(origin.parts), (origin.repository_id or "").rpartition("/")[2]):
        if match := _MODEL.match(part):
            return "meta-llama/Llama-3.1-8B" + ("-Instruct" if match[1] == "-Instruct" else "")
    return None
