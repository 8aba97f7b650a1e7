"""Llama Scope R1 distill: `config.json` and `sae_weights.safetensors`, the names of SAELens with other contents.

    h = s_in · x @ W_enc + b_enc;  f = max(h, 0) · 1[h · ‖W_dec‖ > exp(log_jumprelu_threshold)]
    x̂ = (f @ W_dec + b_dec) · s_out

with s_in = √d / norm, the mean norm of the dataset being a tensor `dataset_average_activation_norm.<hook>` of
the weight file. The thresholds are in normalised units already. Without `sparsity_include_decoder_norm` the
decoder's norms do not count. `act_fn: relu` has no thresholds.
"""

from __future__ import annotations

from ...errors import SAEInvalidError
from ..assembly import MATH, Alias, Names
from ..config import Config
from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..headers import TensorFile, scalar
from ..layout import Layout
from .llama_scope import (
    ARCHITECTURES,
    KEYS,
    NORM,
    activation_of,
    is_scaled,
    layout_of,
    scales,
    sizes_said,
)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "config.json"
NAMING = Naming(
    (WEIGHTS,),
    ((CONFIG,),),
    needs_config=True,
    never_with=("cfg.json",),
    agrees=lambda settings: "hook_point_in" in settings,
)

_NAMES: Names = {**MATH, "threshold": (Alias("log_jumprelu_threshold", exponential=True),)}
OTHER_NORM = "the mean norm at another hook, or one that norm_activation does not ask for"
NO_NORM = "the mean norm of the dataset is not in the files: activations are used as they are"


def recognise(files: SaeFiles) -> bool:
    if not files.has(WEIGHTS) or not files.has(CONFIG) or files.has("cfg.json"):
        return False
    return "hook_point_in" in files.config(CONFIG) or "log_jumprelu_threshold" in files.tensors(WEIGHTS)


def read(files: SaeFiles) -> Layout:
    cfg = files.config(CONFIG)
    KEYS.refuse(cfg)
    file = files.tensors(WEIGHTS)
    sizes = sizes_said(cfg)
    scaled, norms = is_scaled(cfg), Config({}, CONFIG, absent=True)
    norm_in = norm_out = None
    name_in = cfg.text("hook_point_in")
    name_out = cfg.text("hook_point_out") or name_in
    if scaled:
        norms = cfg.section(NORM)
        norm_in = _norm(norms, file, name_in, "in")
        norm_out = _norm(norms, file, name_out, "out") or (norm_in if name_out == name_in else None)
    known = norm_in is not None and norm_out is not None
    ends = {f"{NORM}.{name_in}", f"{NORM}.{name_out}"} if scaled else set()
    kept = {name: OTHER_NORM for name in file.tensors if name.startswith(f"{NORM}.") and name not in ends}
    return layout_of(
        cfg,
        file,
        sizes,
        scale=scales(scaled and known, norm_in, norm_out, sizes),
        norms=norms,
        names=_NAMES if activation_of(cfg) == "jumprelu" else MATH,
        trained_on="deepseek-ai/DeepSeek-R1-Distill-Llama-8B" if "R1-Distill" in str(files.origin) else None,
        warnings=() if known or not scaled else (NO_NORM,),
        left=kept,
        ignored=(*kept, *ends),
    )


def _norm(norms: Config, file: TensorFile, hook: str | None, end: str) -> float | None:
    """Mean norm of the dataset at a hook, from the weights or, in older files, the config."""
    stored = file.tensors.get(f"{NORM}.{hook}")
    if stored is None:
        return norms.positive(end)
    norm = scalar(stored)
    if norm <= 0:
        raise SAEInvalidError(f"{stored.name} is {norm}", check=NORM)
    return norm


FORMAT = Format("llama_scope_r1", NAMING, ARCHITECTURES, recognise, read)
