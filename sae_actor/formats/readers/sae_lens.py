"""SAELens: `cfg.json` (or `config.json`) next to `sae_weights.safetensors`, from the first releases to v6.

    oldest   d_in, d_sae, hook_point, hook_point_layer, model_name; a boolean normalize_activations
    v3 – v5  flat: architecture, activation_fn_str, activation_fn_kwargs, hook_name, hook_layer
    v6       nested: what is not mathematics is under metadata; hook_layer is gone

The version is `sae_lens_version`, on top or under metadata; without one, or below 6, the file is a legacy one.
A TopK activation makes a legacy SAE a TopK SAE whatever its `architecture` says. `dtype` and `device` of the
config are those of the training run and are not read.
"""

from __future__ import annotations

import re
from typing import TypeVar

from ...domain.refs import HookPoint
from ...errors import SAEInvalidError, SAEUnsupportedError
from ..assembly import MATH, Alias, Names, Sizes, assemble, check_k, layout, side
from ..config import Config
from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..headers import TensorFile
from ..hook_names import agree, parse_hook, parse_layer
from ..layout import Activation, Layout, Recipe, RowNorm
from ..refused import CLT, TEMPORAL
from ..settings.processed import CENTRED, MAYBE_CENTRED, Processed
from ..settings.sae_lens_keys import ACTIVATION, METADATA, MODEL, TOP
from . import llama_scope_r1
from .kissane import VALUE_BIAS

_T = TypeVar("_T")

WEIGHTS = "sae_weights.safetensors"
NAMING = Naming(
    (WEIGHTS,),
    (("cfg.json", "config.json"),),
    needs_config=True,
    agrees=lambda settings: not llama_scope_r1.NAMING.agrees(settings),
)

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
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
"""Training checkpoints: trained to keep the largest of a batch, used with the threshold that came out of it."""

_THRESHOLD = "topk_threshold"

_REFUSED = {
    "matching_pursuit": "it picks one feature after the other, each for what those before it left over: that takes an "
    "encoder that runs in steps, and here one matrix reads every feature",
    "temporal": TEMPORAL,
    "clt": CLT,
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
NO_CONSTANT = (
    "normalize_activations is expected_average_only_in, whose constant is not in the files: activations are used "
    "as they are (set norm_scaling_factor in cfg.json if it is known)"
)


def recognise(files: SaeFiles) -> bool:
    return files.has(WEIGHTS) and not llama_scope_r1.recognise(files)


def read(files: SaeFiles) -> Layout:
    name = files.first("cfg.json", "config.json")
    if name is None:
        raise SAEInvalidError(f"cfg.json is missing next to {WEIGHTS}", check="config")
    cfg = files.config(name)
    meta = cfg.section("metadata")
    legacy = _is_legacy(cfg, meta)
    kwargs = [part.section("model_from_pretrained_kwargs") for part in (meta, cfg)]
    architecture = _architecture(cfg, legacy)
    chooses = architecture in ("topk", "abstopk")
    file = files.tensors(WEIGHTS)
    names = _names(architecture, file)
    sizes = _sizes(cfg, file, names, architecture)

    transcoder = "transcoder" in architecture
    subtract = cfg.boolean("apply_b_dec_to_input", default=not transcoder)
    if transcoder and subtract:
        raise SAEInvalidError("a transcoder cannot subtract b_dec from its input", check="config.apply_b_dec_to_input")
    if not transcoder and sizes.d_out != sizes.d_in:
        raise SAEInvalidError(f"{architecture} with d_out {sizes.d_out} ≠ d_in {sizes.d_in}", check="config.d_out")

    hook_name = _either(cfg, meta, legacy, "hook_name", "hook_point", "hf_hook_name")
    layer = _count_of(cfg, meta, "hook_layer", "hook_point_layer")
    if hook_name and layer is not None:
        hook_name = hook_name.replace("{layer}", str(layer))
    model = _either(cfg, meta, legacy, "model_name")
    warnings: list[str] = []
    plain = parse_hook(hook_name, transcoder_input=transcoder, model=model)
    # Asked for where it reads a norm; each of the two is looked at.
    reads_norm = plain is not None and plain.kind == "mlp_in"
    folded = reads_norm and True in [part.boolean("fold_ln", default=False) for part in kwargs]
    point = _hook_point(cfg, meta, hook_name, transcoder=transcoder, model=model, folded=folded, warnings=warnings)
    if point is not None and layer is not None and layer != point.layer:
        warnings.append(f"hook_layer is {layer}, the hook's name says {point.layer}: the name counts")

    norm, scale = _normalisation(cfg, warnings)
    processed = Processed(kwargs, point, model)
    processed.refuse_folding()
    centre = processed.centred(files)
    if centre:
        warnings.append(CENTRED)
    elif centre is None and legacy and norm != "layer_norm":
        warnings.append(MAYBE_CENTRED)
    warnings += processed.checkpoints()
    if legacy and processed.may_lack_value_bias(str(cfg.values.get("sae_lens_training_version"))):
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
        decoder_norm=(chooses or architecture in _BATCH_TOPK)
        and cfg.boolean("rescale_acts_by_decoder_norm", default=not chooses),
        heads=_heads(cfg, hook_name),
    )
    means_nothing = cfg.values.get("finetuning_scaling_factor") is True and "scaling_factor" not in file
    tuned = not means_nothing and cfg.boolean("finetuning_scaling_factor", default=False)
    prepend_bos = _truth(cfg, meta, legacy, "prepend_bos")
    point_out = (
        _hook_point_out(cfg, meta, hook_name, point=point, model=model, warnings=warnings) if transcoder else None
    )
    settled = [(cfg, TOP, ""), (meta, METADATA, "metadata.")]
    for part, at in zip(kwargs, ("metadata.", ""), strict=True):
        settled.append((part, MODEL, f"{at}model_from_pretrained_kwargs."))
    if legacy:
        settled.append((cfg.section("activation_fn_kwargs"), ACTIVATION, "activation_fn_kwargs."))
    return layout(
        file,
        assemble(file, names, sizes, optional=("scaling_factor",), broadcast=("threshold",)),
        recipe,
        sizes,
        architecture=architecture,
        trained_on=model,
        trained_layer=point.layer if point else _first(parse_layer(hook_name), layer),
        hook_name=hook_name,
        hook_point=point,
        hook_point_out=point_out,
        norms_folded=folded,
        warnings=warnings,
        settled=settled,
        prepend_bos=prepend_bos,
        ones_only=() if tuned else ("scaling_factor",),
    )


def _is_legacy(cfg: Config, meta: Config) -> bool:
    version = cfg.text("sae_lens_version") or meta.text("sae_lens_version")
    match = re.match(r"(\d{1,4})\.", version or "")
    return match is None or int(match[1]) < 6


def _activation_name(cfg: Config) -> str:
    found = [name for key in ("activation_fn_str", "activation_fn") if (name := cfg.text(key))]
    if len(set(found)) > 1:
        raise SAEInvalidError(f"activation_fn_str is {found[0][:60]}, activation_fn {found[1][:60]}", check="config")
    return found[0] if found else "relu"


def _architecture(cfg: Config, legacy: bool) -> str:
    architecture = cfg.text("architecture") or "standard"
    if legacy:
        activation = _activation_name(cfg)
        if activation == "topk":
            architecture = "topk"
        elif activation not in ("relu", "tanh-relu") or (activation == "tanh-relu" and architecture != "standard"):
            raise SAEUnsupportedError(f"activation function {activation[:60]} in a {architecture[:60]} SAE")
    if architecture not in _ACTIVATIONS:
        why = _REFUSED.get(architecture, "not a known architecture of SAELens")
        raise SAEUnsupportedError(f"{architecture[:60]}: {why}", architecture=architecture[:60])
    return architecture


def _k(cfg: Config, legacy: bool) -> int | None:
    """k of a TopK SAE; v6 takes 100 where its config is silent."""
    if not legacy:
        return _first(cfg.count("k"), 100)
    return _first(cfg.section("activation_fn_kwargs").count("k"), cfg.count("k"))


def _names(architecture: str, file: TensorFile) -> Names:
    if architecture == "gated":
        names = dict(_GATED)
    else:
        names = dict(MATH)
        if "jumprelu" in architecture:
            names["threshold"] = (Alias("threshold"),)
        if architecture in _BATCH_TOPK:
            if _THRESHOLD not in file:
                why = f"{WEIGHTS} has no {_THRESHOLD}, below which a feature is off"
                raise SAEUnsupportedError(
                    f"{architecture}: {why}: save it for inference, as a jumprelu SAE", architecture=architecture
                )
            names["threshold"] = (Alias(_THRESHOLD),)
        if "skip" in architecture:
            names["W_skip"] = (Alias("W_skip"),)
    return names | {"scaling_factor": (Alias("scaling_factor"),)}


def _sizes(cfg: Config, file: TensorFile, names: Names, architecture: str) -> Sizes:
    d_in = cfg.needed("d_in", "d_model", "input_dim", "activation_dim")
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
    value = cfg.get("normalize_activations")
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
    return point


def _hook_point_out(
    cfg: Config, meta: Config, name_in: str | None, *, point: HookPoint | None, model: str | None, warnings: list[str]
) -> HookPoint | None:
    if _count_of(cfg, meta, "hook_head_index_out") is not None:
        warnings.append("writes at one attention head, which is no hook point")
        return None
    name = _either(cfg, meta, False, "hook_name_out", "hook_point_out", "hf_hook_name_out")
    if name:
        out = parse_hook(name, model=model)
        if out is None:
            warnings.append(f"the hook {name[:100]} is no known hook point")
        return out
    if point is not None and (point.kind == "mlp_in" or (name_in or "").endswith(".hook_mlp_in")):
        warnings.append("the files do not name the output: that of the MLP whose input is read")
        return HookPoint("mlp_out", point.layer)
    return None


def _heads(cfg: Config, hook_name: str | None) -> bool:
    reshape = cfg.text("reshape_activations")
    if reshape not in (None, "none", "hook_z"):
        raise SAEUnsupportedError(f"reshape_activations {reshape[:60]}")
    return reshape == "hook_z" or (reshape is None and "hook_z" in (hook_name or ""))


def _either(cfg: Config, meta: Config, legacy: bool, *keys: str) -> str | None:
    """A text that v6 keeps under metadata and older files on top."""
    parts = (cfg, meta) if legacy else (meta, cfg)
    return next((text for part in parts for key in keys if (text := part.text(key))), None)


def _truth(cfg: Config, meta: Config, legacy: bool, key: str) -> bool | None:
    for part in (cfg, meta) if legacy else (meta, cfg):
        if key in part:
            return part.boolean(key, default=False)
    return None


def _count_of(cfg: Config, meta: Config, *keys: str) -> int | None:
    values = (part.count(key, least=0) for part in (cfg, meta) for key in keys)
    return next((value for value in values if value is not None), None)


def _first(value: _T | None, default: _T) -> _T:
    return default if value is None else value


FORMAT = Format("sae_lens", NAMING, tuple(_ACTIVATIONS), recognise, read)
