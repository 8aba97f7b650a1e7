"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors` (torch.nn.Linear orientation, bfloat16).

Inputs are scaled to a mean norm of √d: with s_in = √d / norm.in and s_out = √d / norm.out,

    h = s_in · x @ W_enc + b_enc;  f = max(h, 0) · 1[h > jump_relu_threshold · s_out];  x̂ = (f @ W_dec + b_dec) / s_out

The threshold is one number in the units of the raw output. Training multiplied h by the decoder's norms, which
the released weights have at 1; `top_k` is left over from it.
"""

from __future__ import annotations

import math
import re

from ..errors import SAEInvalidError, SAEUnsupportedError
from .building import MATH, Sizes, assemble, layout
from .config import Config
from .files import Origin, SaeFiles
from .hooks import parse_hook, parse_layer
from .layout import Activation, Layout, Recipe
from .naming import Naming

NAME = "llama_scope"
WEIGHTS = "checkpoints/final.safetensors"
CONFIG = "hyperparams.json"
NAMING = Naming((WEIGHTS,), ((CONFIG,),), needs_config=True)
FILES = NAMING.files
ARCHITECTURES = ("jumprelu", "standard", "jumprelu_transcoder", "transcoder")

_MODEL = re.compile(r"(?:Llama3_1|Llama-3\.1)-8B(-Base|-Instruct)?-L")


def recognise(files: SaeFiles) -> bool:
    return files.has(CONFIG) and (files.has(WEIGHTS) or files.file is None)


def read(files: SaeFiles) -> Layout:
    cfg = files.config(CONFIG)
    d_in = _needed(cfg, "d_model")
    factor = cfg.positive("expansion_factor")
    d_sae = cfg.count("d_sae") or (round(d_in * factor) if factor else _needed(cfg, "d_sae"))
    sizes = Sizes(d_in, d_sae, d_in)
    norms = cfg.section("dataset_average_activation_norm")
    name_in, name_out = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    transcoder = name_out is not None and name_out != name_in
    scale_in, scale_out = scales(cfg, norms.positive("in"), norms.positive("out") or norms.positive("in"), sizes)
    activation = activation_of(cfg)
    threshold = None
    if activation == "jumprelu":
        value = cfg.number("jump_relu_threshold")
        if value is None:
            raise SAEInvalidError(f"{CONFIG} does not say jump_relu_threshold", check="config.jump_relu_threshold")
        threshold = value / scale_out
    file = files.tensors(WEIGHTS)
    point = parse_hook(name_in, transcoder_input=transcoder)
    return layout(
        file,
        assemble(file, MATH, sizes, optional=() if cfg.boolean("use_decoder_bias", default=True) else ("b_dec",)),
        Recipe(
            activation=activation,
            subtract_b_dec=cfg.boolean("apply_decoder_bias_to_pre_encoder", default=False),
            scale_in=scale_in,
            scale_out=scale_out,
            threshold=threshold,
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
        unit_decoder=cfg.boolean("sparsity_include_decoder_norm", default=True),
    )


def _needed(cfg: Config, key: str) -> int:
    value = cfg.count(key)
    if value is None:
        raise SAEInvalidError(f"{cfg.where} does not say {key}", check=f"config.{key}")
    return value


def scales(cfg: Config, norm_in: float | None, norm_out: float | None, sizes: Sizes) -> tuple[float, float]:
    """Factors on the input and the output, for the mean norms of the dataset."""
    kind = cfg.text("norm_activation")
    if kind in ("none", "inference"):
        return 1.0, 1.0
    if kind not in (None, "dataset-wise"):
        raise SAEUnsupportedError(f"norm_activation {kind[:60]}")
    if norm_in is None or norm_out is None:
        raise SAEInvalidError("the mean norm of the dataset is missing", check="config.dataset_average_activation_norm")
    return math.sqrt(sizes.d_in) / norm_in, norm_out / math.sqrt(sizes.d_out)


def activation_of(cfg: Config) -> Activation:
    name = (cfg.text("act_fn") or "jumprelu").lower()
    if cfg.boolean("use_glu_encoder", default=False) or name not in ("jumprelu", "relu"):
        raise SAEUnsupportedError(f"act_fn {name[:60]} of a checkpoint in training, or a gated linear encoder")
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
