"""Gemma Scope 2: `params.safetensors` with lower-case names, and mostly a `config.json`.

    resid_post/layer_13_width_16k_l0_medium/      also resid_post_all, mlp_out, attn_out, transcoder, transcoder_all

JumpReLU, b_dec not subtracted. Affine transcoders add x @ affine_skip_connection, stored [d_in, d_out]. Without
a config the path says site and layer. Cross-layer transcoders (`clt`) write at several layers and are refused.
"""

from __future__ import annotations

import re

from ...domain.refs import HookPoint
from ...errors import SAEInvalidError, SAEUnsupportedError
from ..assembly import Alias, Names, assemble, layout, sizes_of
from ..config import Config
from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..hook_names import parse_hook
from ..layout import Layout, Recipe
from ..refused import CLT, CROSSCODER
from ..settings.keys import Keys

WEIGHTS = "params.safetensors"
NAMING = Naming((WEIGHTS,), (("config.json",),))

_NAMES: Names = {
    "W_enc": (Alias("w_enc"),),
    "b_enc": (Alias("b_enc"),),
    "W_dec": (Alias("w_dec"),),
    "b_dec": (Alias("b_dec"),),
    "threshold": (Alias("threshold"),),
    "W_skip": (Alias("affine_skip_connection", transposed=True),),
}
KEYS = Keys(
    heeded={
        "hf_hook_point_in": "",
        "hf_hook_point_out": "",
        "width": "a name; the tensors say how many features there are",
        "model_name": "",
        "architecture": "",
        "affine_connection": "",
        "type": "",
    },
    irrelevant={"l0": "how many features were on in training, on average"},
)
_FOLDER = re.compile(r"layer_(\d{1,3})_width_.+")
_SITES = {
    "resid_post": ("model.layers.{}.output", None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
}
_REPOSITORY = re.compile(r"gemma-scope-2-(\d+[bm])-(pt|it)")


def recognise(files: SaeFiles) -> bool:
    return files.has(WEIGHTS)


def read(files: SaeFiles) -> Layout:
    file = files.tensors(WEIGHTS)
    cfg = files.config("config.json") if files.has("config.json") else Config({}, "config.json")
    w_dec = file.tensors.get("w_dec")
    w_enc = file.tensors.get("w_enc")
    if "crosscoder" in (*files.origin.parts, cfg.text("type")) or (w_enc and len(w_enc.shape) == 3):
        raise SAEUnsupportedError(CROSSCODER, architecture="crosscoder")
    if "clt" in files.origin.parts[-2:-1] or cfg.text("type") == "clt" or (w_dec and len(w_dec.shape) == 3):
        raise SAEUnsupportedError(CLT, architecture="clt")
    if cfg.text("architecture") not in (None, "jump_relu", "jumprelu"):
        raise SAEUnsupportedError(f"architecture {cfg.text('architecture')}")
    sizes = sizes_of(file, _NAMES)
    width = cfg.count("width") if isinstance(cfg.values.get("width"), int | float) else None
    if width is not None and width != sizes.d_sae:
        raise SAEInvalidError(f"config.json: width is {width}, the tensors have {sizes.d_sae}", check="shape")
    name_in, name_out = cfg.text("hf_hook_point_in"), cfg.text("hf_hook_point_out")
    if name_in is None:
        name_in, out_of_path = _from_path(files.origin.parts)
        name_out = name_out or out_of_path
    kind = cfg.text("type") or ("transcoder" if name_out not in (None, name_in) else "sae")
    if kind not in ("sae", "transcoder"):
        raise SAEUnsupportedError(f"type {kind}")
    if kind == "sae" and name_out not in (None, name_in):
        why = f"an SAE that reads at {name_in} and writes at {name_out} is a transcoder, and type says that it is none"
        raise SAEInvalidError(f"config.json: {why}"[:300], check="config.hf_hook_point_out")
    skip = "affine_skip_connection" in file
    if cfg.boolean("affine_connection", default=skip) != skip:
        raise SAEInvalidError(
            "affine_connection and the tensors contradict each other", check="config.affine_connection"
        )
    transcoder = kind == "transcoder"
    if skip and not transcoder:
        raise SAEInvalidError("an SAE with an affine_skip_connection", check="foreign_tensor")
    model = _model(cfg, files)
    point = parse_hook(name_in, transcoder_input=transcoder, model=model)
    out = _out(name_out, point, model) if transcoder else None
    warnings = () if point else ("the files do not say a known hook point",)
    if name_out and transcoder and out is None:
        warnings = (*warnings, f"the hook {name_out[:100]} is no known hook point")
    return layout(
        file,
        assemble(file, _NAMES, sizes, optional=("W_skip",)),
        Recipe(activation="jumprelu", norm_output=not transcoder, heads=point is not None and point.kind == "attn_z"),
        sizes,
        architecture="jumprelu" + ("_skip" if skip else "") + ("_transcoder" if transcoder else ""),
        trained_on=model,
        hook_name=name_in,
        hook_point=point,
        hook_point_out=out,
        warnings=warnings,
        settled=[(cfg, KEYS, "")],
    )


def _from_path(parts: tuple[str, ...]) -> tuple[str | None, str | None]:
    if len(parts) >= 2 and (layer := _FOLDER.fullmatch(parts[-1])):
        site = _SITES.get(parts[-2].removesuffix("_all"))
        if site:
            return tuple(name and name.format(layer[1]) for name in site)  # type: ignore[return-value]  # a pair stays one
    return None, None


def _out(name: str | None, point: HookPoint | None, model: str | None) -> HookPoint | None:
    if name:
        return parse_hook(name, model=model)
    return HookPoint("mlp_out", point.layer) if point and point.kind == "mlp_in" else None


def _model(cfg: Config, files: SaeFiles) -> str | None:
    """`gemma-v3-1b-it` is google/gemma-3-1b-it."""
    name = cfg.text("model_name")
    if name:
        name = name.replace("-v3-", "-3-")
        return name if "/" in name else f"google/{name}"
    match = files.origin.named(_REPOSITORY)
    return f"google/gemma-3-{match[1]}-{match[2]}" if match else None


_ARCHITECTURES = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
FORMAT = Format("gemma_scope_2", NAMING, _ARCHITECTURES, recognise, read)
