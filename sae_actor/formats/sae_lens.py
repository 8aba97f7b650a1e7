"""SAELens: `cfg.json` (or `config.json`) beside `sae_weights.safetensors`, from the first releases to v6.

    oldest   d_in, d_sae, hook_point, hook_point_layer, model_name; a boolean normalize_activations
    v3 – v5  flat: architecture, activation_fn_str, activation_fn_kwargs, hook_name, hook_layer
    v6       nested: what is not mathematics is under metadata; hook_layer is gone

The version is `sae_lens_version`, on top or under metadata; without one, or below 6, the file is a legacy one.
A TopK activation makes a legacy SAE a TopK SAE whatever its `architecture` says. `dtype` and `device` of the
config are those of the training run and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from ..domain.refs import HookPoint
from ..errors import SAEInvalidError, SAEUnsupportedError
from . import llama_scope_r1
from .building import MATH, Alias, Names, Sizes, assemble, check_k, layout, side
from .config import Config
from .files import SaeFiles
from .headers import TensorFile
from .hooks import agree, parse_hook, parse_layer
from .kissane import VALUE_BIAS
from .layout import Activation, Layout, Recipe, RowNorm
from .naming import Naming

_T = TypeVar("_T")

NAME = "sae_lens"
WEIGHTS = "sae_weights.safetensors"
NAMING = Naming(
    (WEIGHTS,),
    (("cfg.json", "config.json"),),
    needs_config=True,
    agrees=lambda settings: not llama_scope_r1.NAMING.agrees(settings),
)
FILES = NAMING.files

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
ARCHITECTURES = tuple(_ACTIVATIONS)

_REFUSED = {
    "batchtopk": "is a training checkpoint; save it for inference, which makes it a jumprelu SAE",
    "matryoshka_batchtopk": "is a training checkpoint; save it for inference, which makes it a jumprelu SAE",
    "matching_pursuit": "encodes in sequence and has no encoder matrix",
    "temporal": "attends over the whole sequence when it encodes",
    "clt": "writes at several layers",
}
_NORMS: dict[str, RowNorm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "none",
}
_GATED: Names = {
    "W_enc": MATH["W_enc"],
    "b_gate": (Alias("b_gate"), Alias("gate_bias")),
    "b_mag": (Alias("b_mag"), Alias("mag_bias")),
    "r_mag": (Alias("r_mag"),),
    "W_dec": MATH["W_dec"],
    "b_dec": MATH["b_dec"],
}
_RMS_MODELS = re.compile(r"gemma|llama|mistral|mixtral|qwen|smollm|olmo|deepseek", re.IGNORECASE)
"""Models without LayerNorm: their writing weights cannot be centred, whatever the config asked for."""
_WITHOUT_VALUE_BIAS = re.compile(r"gemma|llama|mistral|mixtral|smollm|olmo|qwen-?3", re.IGNORECASE)
"""Models whose heads have no bias that could have been moved behind them."""
_CENTRED_RELEASES = {
    "GPT2-Small-SAEs-Reformatted",
    "GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "gpt2-small-mlp-out-saes",
}
"""Repositories of older GPT-2 sets that were trained on centred writing weights, and whose files do not say so."""
_WRITTEN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

NO_CONSTANT = (
    "normalize_activations is expected_average_only_in, whose constant is not in the files: activations are used "
    "as they are (set norm_scaling_factor in cfg.json if it is known)"
)
CENTRED = "trained on a stream with its mean taken out: the mean is removed before encoding and put back after"

MAYBE_CENTRED = (
    "trained before its library wrote down whether it took the mean out of the stream; activations are used as they "
    "are (set model_from_pretrained_kwargs.center_writing_weights in cfg.json if it did)"
)


def recognise(files: SaeFiles) -> bool:
    return files.has(WEIGHTS) and not llama_scope_r1.recognise(files)


def read(files: SaeFiles) -> Layout:
    name = files.first("cfg.json", "config.json")
    if name is None:
        raise SAEInvalidError(f"{WEIGHTS} has no cfg.json beside it", check="config")
    cfg = files.config(name)
    meta = cfg.section("metadata")
    legacy = _is_legacy(cfg, meta)
    architecture = _architecture(cfg, legacy)
    chooses = architecture in ("topk", "abstopk")
    file = files.tensors(WEIGHTS)
    names = _names(architecture)
    sizes = _sizes(cfg, file, names, architecture)

    transcoder = "transcoder" in architecture
    subtract = cfg.boolean("apply_b_dec_to_input", default=not transcoder)
    if transcoder and subtract:
        raise SAEInvalidError("a transcoder cannot subtract b_dec from its input", check="config.apply_b_dec_to_input")
    if not transcoder and sizes.d_out != sizes.d_in:
        raise SAEInvalidError(f"{architecture} with d_out {sizes.d_out} ≠ d_in {sizes.d_in}", check="config.d_out")

    hook_name = _either(cfg, meta, legacy, "hook_name", "hook_point")
    layer = _count_of(cfg, meta, "hook_layer", "hook_point_layer")
    if hook_name and layer is not None:
        hook_name = hook_name.replace("{layer}", str(layer))
    model = _either(cfg, meta, legacy, "model_name")
    warnings: list[str] = []
    kwargs = [part.section("model_from_pretrained_kwargs") for part in (meta, cfg)]
    folded = any(part.boolean("fold_ln", default=False) for part in kwargs)
    point = _hook_point(
        cfg, meta, hook_name, transcoder=transcoder, model=model, folded=folded, kwargs=kwargs, warnings=warnings
    )
    if point is not None and layer is not None and layer != point.layer:
        warnings.append(f"hook_layer is {layer}, the hook's name says {point.layer}: the name counts")

    norm, scale = _normalisation(cfg, warnings)
    centre = _centred(files, kwargs, point, model)
    if centre:
        warnings.append(CENTRED)
    elif centre is None and legacy and norm != "layer_norm":
        warnings.append(MAYBE_CENTRED)
    if legacy and point is not None and point.kind == "attn_z" and not _unprocessed(cfg, model):
        warnings.append(VALUE_BIAS)
    recipe = Recipe(
        activation="tanh-relu" if legacy and _activation_name(cfg) == "tanh-relu" else _ACTIVATIONS[architecture],
        k=check_k(_k(cfg, legacy), sizes.d_sae, name) if chooses else None,
        subtract_b_dec=subtract,
        row_norm=norm,
        centre=bool(centre),
        norm_output=not transcoder,
        scale_in=scale,
        scale_out=1.0 if transcoder else 1.0 / scale,
        decoder_norm=chooses and cfg.boolean("rescale_acts_by_decoder_norm", default=False),
        heads=_heads(cfg, hook_name),
    )
    tuned = cfg.boolean("finetuning_scaling_factor", default=False)
    weights = assemble(file, names, sizes, optional=("scaling_factor",))
    return layout(
        file,
        weights,
        recipe,
        sizes,
        format=NAME,
        architecture=architecture,
        trained_on=model,
        trained_layer=point.layer if point else _first(parse_layer(hook_name), layer),
        hook_name=hook_name,
        hook_point=point,
        hook_point_out=_hook_point_out(cfg, meta, hook_name, point=point, model=model, warnings=warnings)
        if transcoder
        else None,
        norms_folded=folded,
        warnings=warnings,
        ones_only=() if tuned else ("scaling_factor",),
    )


def _is_legacy(cfg: Config, meta: Config) -> bool:
    version = cfg.text("sae_lens_version") or meta.text("sae_lens_version")
    match = re.match(r"(\d{1,4})\.", version or "")
    return match is None or int(match[1]) < 6


def _activation_name(cfg: Config) -> str:
    return cfg.text("activation_fn_str") or cfg.text("activation_fn") or "relu"


def _architecture(cfg: Config, legacy: bool) -> str:
    architecture = cfg.text("architecture") or "standard"
    if legacy:
        activation = _activation_name(cfg)
        if activation == "topk":
            architecture = "topk"
        elif activation not in ("relu", "tanh-relu") or (activation == "tanh-relu" and architecture != "standard"):
            raise SAEUnsupportedError(f"activation function {activation[:60]} in a {architecture[:60]} SAE")
    if architecture not in _ACTIVATIONS:
        why = _REFUSED.get(architecture, "is not a known architecture of SAELens")
        raise SAEUnsupportedError(f"{architecture[:60]} {why}", architecture=architecture[:60])
    return architecture


def _k(cfg: Config, legacy: bool) -> int | None:
    """k of a TopK SAE; v6 takes 100 where its config is silent."""
    if not legacy:
        return _first(cfg.count("k"), 100)
    return _first(cfg.section("activation_fn_kwargs").count("k"), cfg.count("k"))


def _names(architecture: str) -> Names:
    if architecture == "gated":
        names = dict(_GATED)
    else:
        names = dict(MATH)
        if "jumprelu" in architecture:
            names["threshold"] = (Alias("threshold"),)
        if "skip" in architecture:
            names["W_skip"] = (Alias("W_skip"),)
    return names | {"scaling_factor": (Alias("scaling_factor"),)}


def _sizes(cfg: Config, file: TensorFile, names: Names, architecture: str) -> Sizes:
    d_in = cfg.same_count(("d_in", "d_model", "input_dim", "activation_dim"))
    if d_in is None:
        raise SAEInvalidError(f"{cfg.where} does not say d_in", check="config.d_in")
    d_sae = cfg.same_count(("d_sae", "dict_size", "hidden_dim", "d_hidden", "num_latents", "n_features"))
    if d_sae is None:
        factor = cfg.count("expansion_factor")
        if factor is None:
            raise SAEInvalidError(f"{cfg.where} does not say d_sae", check="config.d_sae")
        d_sae = d_in * factor
    d_out = cfg.same_count(("d_out", "output_dim"))
    if d_out is None:
        d_out = side(file, names, "W_dec", 1) if "transcoder" in architecture else d_in
    return Sizes(d_in, d_sae, d_out)


def _normalisation(cfg: Config, warnings: list[str]) -> tuple[RowNorm, float]:
    """Per-row normalisation, and the dataset's constant."""
    value = cfg.values.get("normalize_activations")
    if value is None or value is False:
        return "none", 1.0
    name = "expected_average_only_in" if value is True else cfg.text("normalize_activations")
    if name not in _NORMS:
        raise SAEUnsupportedError(f"normalize_activations {str(name)[:60]}", normalize_activations=str(name)[:60])
    scale = 1.0
    if name == "expected_average_only_in":
        known = cfg.positive("norm_scaling_factor")
        if known is None:
            warnings.append(NO_CONSTANT)
        scale = _first(known, 1.0)
    return _NORMS[name], scale


def _hook_point(
    cfg: Config,
    meta: Config,
    name: str | None,
    *,
    transcoder: bool,
    model: str | None,
    folded: bool,
    kwargs: Sequence[Config],
    warnings: list[str],
) -> HookPoint | None:
    if any(part.count("hook_head_index", least=0) is not None for part in (cfg, meta)) or (
        cfg.count("hook_point_head_index", least=0) is not None
    ):
        warnings.append("trained on one attention head, which is no hook point")
        return None
    point = parse_hook(name, transcoder_input=transcoder, model=model, norms_folded=folded)
    if name and point is None:
        warnings.append(f"the hook {name[:100]} is no known hook point")
    module = meta.text("hf_hook_name")
    there = parse_hook(module, transcoder_input=transcoder, model=model)
    if point is not None and there is not None and not agree(point, there, model):
        warnings.append(f"{str(name)[:100]} is {point}, hf_hook_name {str(module)[:100]} is {there}: neither counts")
        return None
    moved = any(part.boolean("fold_value_biases", default=False) for part in kwargs)
    if moved and point is not None and point.kind == "attn_z" and not _WITHOUT_VALUE_BIAS.search(model or ""):
        warnings.append("fold_value_biases: hook_z lacks the value bias then, and so is no hook point here")
        return None
    return point


def _unprocessed(cfg: Config, model: str | None) -> bool:
    """Whether heads surely gave their value bias: there is none, or the library left it where it was, as since 3.22."""
    version = re.match(r"(\d{1,4})\.(\d{1,4})", cfg.text("sae_lens_training_version") or "")
    recent = version is not None and (int(version[1]), int(version[2])) >= (3, 22)
    return recent or bool(_WITHOUT_VALUE_BIAS.search(model or ""))


def _hook_point_out(
    cfg: Config, meta: Config, name_in: str | None, *, point: HookPoint | None, model: str | None, warnings: list[str]
) -> HookPoint | None:
    name = meta.text("hook_name_out") or cfg.text("hook_name_out") or cfg.text("hook_point_out")
    if name:
        return parse_hook(name, model=model)
    if point is not None and (point.kind == "mlp_in" or (name_in or "").endswith(".hook_mlp_in")):
        warnings.append("the files do not name the output: that of the MLP whose input is read")
        return HookPoint("mlp_out", point.layer)
    return None


def _centred(files: SaeFiles, kwargs: Sequence[Config], point: HookPoint | None, model: str | None) -> bool | None:
    """Whether the stream had its mean over the width taken out; None where an old release does not say.

    A library that centres the writing weights of a LayerNorm model takes the mean out of everything that is
    written to the stream. It did so by default until the config began to say, under `model_from_pretrained_kwargs`.
    """
    on_stream = point is not None and (point.kind in _WRITTEN or (point.kind, point.before) == ("mlp_in", "norm"))
    if not on_stream or _RMS_MODELS.search(model or ""):
        return False
    if any("center_writing_weights" in part for part in kwargs):
        return any(part.boolean("center_writing_weights", default=False) for part in kwargs)
    names = {(files.origin.repository_id or "").rpartition("/")[2], *files.origin.parts}
    if not _CENTRED_RELEASES.isdisjoint(names):
        return True
    return None if all(part.absent for part in kwargs) else False


def _heads(cfg: Config, hook_name: str | None) -> bool:
    reshape = cfg.text("reshape_activations")
    if reshape not in (None, "none", "hook_z"):
        raise SAEUnsupportedError(f"reshape_activations {reshape[:60]}")
    return reshape == "hook_z" or (reshape is None and "hook_z" in (hook_name or ""))


def _either(cfg: Config, meta: Config, legacy: bool, *keys: str) -> str | None:
    """A text that v6 keeps under metadata and older files on top."""
    parts = (cfg, meta) if legacy else (meta, cfg)
    return next((text for part in parts for key in keys if (text := part.text(key))), None)


def _count_of(cfg: Config, meta: Config, *keys: str) -> int | None:
    values = (part.count(key, least=0) for part in (cfg, meta) for key in keys)
    return next((value for value in values if value is not None), None)


def _first(value: _T | None, default: _T) -> _T:
    return default if value is None else value
