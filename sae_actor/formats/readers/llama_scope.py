"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors` (torch.nn.Linear orientation, bfloat16).

Inputs are scaled to a mean norm of √d: with s_in = √d / norm.in and s_out = √d / norm.out,

    h = s_in · x @ W_enc + b_enc;  f = max(h, 0) · 1[h > jump_relu_threshold · s_out];  x̂ = (f @ W_dec + b_dec) / s_out

The threshold is one number in the units of the raw output. With `sparsity_include_decoder_norm` it is h · ‖W_dec[i]‖
that has to exceed it; the released weights have those norms at 1. `top_k` is left over from training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

from ...errors import SAEInvalidError
from ..assembly import MATH, Names, Sizes, assemble, layout
from ..config import Config
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..format import Format
from ..headers import TensorFile
from ..hook_names import parse_hook
from ..layout import Activation, Layout, Recipe
from ..settings.keys import DATA, LOGGING, MACHINE, NO_INITIAL, STORED_TYPE, TRAINING, Keys, Refused, left

WEIGHTS = "checkpoints/final.safetensors"
CONFIG = "hyperparams.json"
NAMING = Naming((WEIGHTS,), ((CONFIG,),), needs_config=True)
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

NORM = "dataset_average_activation_norm"
_MODEL = re.compile(r"(?:Llama3_1|Llama-3\.1)-8B(-Base|-Instruct)?-L.*")


def recognise(files: SaeFiles) -> bool:
    return files.has(CONFIG) and (files.has(WEIGHTS) or files.file is None)


def read(files: SaeFiles) -> Layout:
    cfg = files.config(CONFIG)
    KEYS.refuse(cfg)
    sizes = sizes_said(cfg)
    scaled = is_scaled(cfg)
    norms = cfg.section(NORM) if scaled else Config({}, CONFIG, absent=True)
    scale = scales(scaled, norms.positive("in"), norms.positive("out") or norms.positive("in"), sizes)
    threshold = None
    if activation_of(cfg) == "jumprelu":
        value = cfg.number("jump_relu_threshold")
        if value is None:
            raise SAEInvalidError(f"{CONFIG} does not say jump_relu_threshold", check="config.jump_relu_threshold")
        threshold = value / scale[1]
    name_in = cfg.text("hook_point_in")
    unknown = () if parse_hook(name_in) else (f"the hook {str(name_in)[:100]} is no known hook point",)
    return layout_of(
        cfg,
        files.tensors(WEIGHTS),
        sizes,
        scale=scale,
        norms=norms,
        threshold=threshold,
        trained_on=_model(files.origin),
        warnings=unknown,
    )


def layout_of(
    cfg: Config,
    file: TensorFile,
    sizes: Sizes,
    *,
    scale: tuple[float, float],
    norms: Config,
    names: Names = MATH,
    threshold: float | None = None,
    trained_on: str | None,
    warnings: tuple[str, ...],
    left: Mapping[str, str] = {},
    ignored: Collection[str] = (),
) -> Layout:
    """What the library's settings mean, wherever its weights and norms are; `ignored`, `left` as in `assembly`."""
    name_in, name_out = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    transcoder = name_out is not None and name_out != name_in
    activation, biased = activation_of(cfg), has_bias(cfg, file)
    of_norm = activation == "jumprelu" and cfg.boolean("sparsity_include_decoder_norm", default=True)
    recipe = Recipe(
        activation=activation,
        subtract_b_dec=cfg.boolean("apply_decoder_bias_to_pre_encoder", default=False),
        scale_in=scale[0],
        scale_out=scale[1],
        threshold=threshold,
        threshold_of_norm=of_norm,
    )
    jumps, plain = ("jumprelu_", "jumprelu") if activation == "jumprelu" else ("", "standard")
    return layout(
        file,
        assemble(file, names, sizes, optional=() if biased else ("b_dec",), ignored=ignored),
        recipe,
        sizes,
        architecture=f"{jumps}transcoder" if transcoder else plain,
        trained_on=trained_on,
        hook_name=name_in,
        hook_point=parse_hook(name_in, transcoder_input=transcoder),
        hook_point_out=parse_hook(name_out) if transcoder else None,
        warnings=warnings,
        settled=[(cfg, KEYS, ""), (norms, NORMS, f"{NORM}.")],
        left=left,
        unit_decoder=of_norm,
    )


def sizes_said(cfg: Config) -> Sizes:
    """d_sae: as said, or what the factor of expansion comes to."""
    d_in = cfg.needed("d_model")
    d_sae = cfg.count("d_sae") or round(d_in * (cfg.positive("expansion_factor") or 0)) or cfg.needed("d_sae")
    return Sizes(d_in, d_sae, d_in)


def is_scaled(cfg: Config) -> bool:
    """Whether the mean norms of the dataset are divided out."""
    kind = cfg.text("norm_activation")
    if kind not in (None, "none", "inference", "dataset-wise"):
        raise cfg.unsupported("norm_activation")
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
        raise SAEInvalidError("the mean norm of the dataset is missing", check=f"config.{NORM}")
    return math.sqrt(sizes.d_in) / norm_in, norm_out / math.sqrt(sizes.d_out)


def activation_of(cfg: Config) -> Activation:
    name = (cfg.text("act_fn") or "jumprelu").lower()
    if name not in ("jumprelu", "relu"):
        raise cfg.unsupported("act_fn", " of a checkpoint in training")
    return "jumprelu" if name == "jumprelu" else "relu"


def _model(origin: Origin) -> str | None:
    match = origin.named(_MODEL)
    return "meta-llama/Llama-3.1-8B" + ("-Instruct" if match[1] == "-Instruct" else "") if match else None


FORMAT = Format("llama_scope", NAMING, ARCHITECTURES, recognise, read)
