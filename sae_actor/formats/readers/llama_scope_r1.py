"""Llama Scope R1 distill: `config.json` and `sae_weights.safetensors`, the names of SAELens with other contents.

    h = s_in · x @ W_enc + b_enc;  f = max(h, 0) · 1[h · ‖W_dec‖ > exp(log_jumprelu_threshold)]
    x̂ = (f @ W_dec + b_dec) · s_out

with s_in = √d / norm, the mean norm of the dataset being a tensor `dataset_average_activation_norm.<hook>` of
the weight file. The thresholds are in normalised units already. Without `sparsity_include_decoder_norm` the
decoder's norms do not count. `act_fn: relu` has no thresholds.
"""

from __future__ import annotations

from ...errors import SAEInvalidError
from ..assembly import MATH, Alias, Names, Sizes, assemble, layout
from ..config import Config
from ..file_names import Naming
from ..files import SaeFiles
from ..headers import TensorFile, scalar
from ..hook_names import parse_hook, parse_layer
from ..layout import Layout, Recipe
from ..settings.keys import Account
from .llama_scope import KEYS, NORMS, activation_of, architecture_of, has_bias, is_scaled, scales, width

NAME = "llama_scope_r1"
WEIGHTS = "sae_weights.safetensors"
CONFIG = "config.json"
NAMING = Naming(
    (WEIGHTS,),
    ((CONFIG,),),
    needs_config=True,
    never_with=("cfg.json",),
    agrees=lambda settings: "hook_point_in" in settings,
)
FILES = NAMING.files
ARCHITECTURES = ("jumprelu", "standard", "jumprelu_transcoder", "transcoder")

_NAMES: Names = {**MATH, "threshold": (Alias("log_jumprelu_threshold", exponential=True),)}
_NORM = "dataset_average_activation_norm"
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
    d_in = cfg.count("d_model")
    d_sae = d_in and width(cfg, d_in)
    if d_in is None or d_sae is None:
        raise SAEInvalidError(f"{CONFIG} does not say d_model and expansion_factor", check="config.d_model")
    sizes = Sizes(d_in, d_sae, d_in)
    name_in, name_out = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    transcoder = name_out is not None and name_out != name_in
    scaled, norms = is_scaled(cfg), Config({}, CONFIG, absent=True)
    norm_in = norm_out = None
    if scaled:
        norms = cfg.section(_NORM)
        norm_in = _norm(norms, file, name_in, "in")
        norm_out = _norm(norms, file, name_out or name_in, "out") or (None if transcoder else norm_in)
    known = norm_in is not None and norm_out is not None
    scale_in, scale_out = scales(scaled and known, norm_in, norm_out, sizes)
    activation, biased = activation_of(cfg), has_bias(cfg, file)
    point = parse_hook(name_in, transcoder_input=transcoder)
    subtract = cfg.boolean("apply_decoder_bias_to_pre_encoder", default=False)
    of_norm = activation == "jumprelu" and cfg.boolean("sparsity_include_decoder_norm", default=True)
    ends = {f"{_NORM}.{name_in}", f"{_NORM}.{name_out or name_in}"} if scaled else set()
    kept = {name: OTHER_NORM for name in file.tensors if name.startswith(f"{_NORM}.") and name not in ends}
    account = Account()
    account.settle(cfg, KEYS)
    account.settle(norms, NORMS, f"{_NORM}.")
    account.tensors(file, kept)
    return layout(
        file,
        assemble(
            file,
            _NAMES if activation == "jumprelu" else MATH,
            sizes,
            optional=() if biased else ("b_dec",),
            ignored=(*kept, *ends),
        ),
        Recipe(
            activation=activation,
            subtract_b_dec=subtract,
            scale_in=scale_in,
            scale_out=scale_out,
            threshold_of_norm=of_norm,
        ),
        sizes,
        format=NAME,
        architecture=architecture_of(activation, transcoder),
        trained_on="deepseek-ai/DeepSeek-R1-Distill-Llama-8B" if "R1-Distill" in str(files.origin) else None,
        trained_layer=parse_layer(name_in),
        hook_name=name_in,
        hook_point=point,
        hook_point_out=parse_hook(name_out) if transcoder else None,
        warnings=() if known or not scaled else (NO_NORM,),
        account=account,
        unit_decoder=of_norm,
    )


def _norm(norms: Config, file: TensorFile, hook: str | None, end: str) -> float | None:
    """Mean norm of the dataset at a hook, from the weights or, in older files, the config."""
    stored = file.tensors.get(f"{_NORM}.{hook}")
    if stored is None:
        return norms.positive(end)
    norm = scalar(stored)
    if norm <= 0:
        raise SAEInvalidError(f"{stored.name} is {norm}", check=_NORM)
    return norm
