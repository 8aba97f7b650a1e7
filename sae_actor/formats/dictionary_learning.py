"""dictionary_learning, SAEBench and their like: `ae.pt` (a state dict) and `config.json` with a `trainer` section.

    AutoEncoder               relu((x − bias) @ We + be)
    AutoEncoderNew            relu(x @ We + be), nothing subtracted
    GatedAutoEncoder          gated, on x − decoder_bias
    JumpReluAutoEncoder       jumprelu, nothing subtracted; W_enc, W_dec in mathematical orientation
    AutoEncoderTopK           the k largest; its `threshold` is for training statistics
    BatchTopKSAE              h · 1[relu(h) > threshold], one number; k is the average of a batch in training
    MatryoshkaBatchTopKSAE    as BatchTopKSAE, in mathematical orientation; groups matter in training only

A threshold of −1 was never estimated and means plain ReLU, as any below 0 does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..domain.refs import HookPoint
from ..errors import SAEInvalidError, SAEUnsupportedError
from .building import MATH, Alias, Names, Sizes, assemble, check_k, layout
from .config import Config
from .files import Origin, SaeFiles
from .headers import TensorFile, scalar
from .hooks import parse_hook
from .layout import Activation, Layout, Recipe
from .naming import Naming

NAME = "dictionary_learning"
NAMING = Naming(
    ("ae.pt", "ae.safetensors", "ae_#.pt", "ae_#.safetensors"),
    (("config.json",),),
    needs_config=True,
    agrees=lambda settings: "trainer" in settings,
)
FILES = ("ae.pt", "ae.safetensors", "config.json")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")

_WEIGHTS = re.compile(r"ae(?:_\d+)?\.(?:pt|safetensors)")
_LINEAR: Names = {name: (MATH[name][1],) for name in ("W_enc", "b_enc", "W_dec")}
_STRAIGHT: Names = {name: (Alias(name),) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_THRESHOLD: Names = {"threshold": (Alias("threshold"),)}


@dataclass(frozen=True)
class _Class:
    activation: Activation
    architecture: str
    names: Names
    subtract: bool = True
    ignored: tuple[str, ...] = ()
    unit_decoder: bool = False


_CLASSES = {
    "AutoEncoder": _Class("relu", "standard", {**_LINEAR, "b_dec": (Alias("bias"),)}, unit_decoder=True),
    "AutoEncoderNew": _Class("relu", "standard", {**_LINEAR, "b_dec": (Alias("decoder.bias"),)}, subtract=False),
    "GatedAutoEncoder": _Class(
        "gated",
        "gated",
        {
            "W_enc": _LINEAR["W_enc"],
            "W_dec": _LINEAR["W_dec"],
            "b_dec": (Alias("decoder_bias"),),
            "b_gate": (Alias("gate_bias"),),
            "b_mag": (Alias("mag_bias"),),
            "r_mag": (Alias("r_mag"),),
        },
    ),
    "JumpReluAutoEncoder": _Class("jumprelu", "jumprelu", {**_STRAIGHT, **_THRESHOLD}, subtract=False),
    "AutoEncoderTopK": _Class("topk", "topk", {**_LINEAR, "b_dec": (Alias("b_dec"),)}, ignored=("k", "threshold")),
    "BatchTopKSAE": _Class(
        "jumprelu", "jumprelu", {**_LINEAR, "b_dec": (Alias("b_dec"),), **_THRESHOLD}, ignored=("k",)
    ),
    "MatryoshkaBatchTopKSAE": _Class(
        "jumprelu", "jumprelu", {**_STRAIGHT, **_THRESHOLD}, ignored=("k", "group_sizes", "group_fractions")
    ),
}
_OF_TRAINER = {
    "StandardTrainer": "AutoEncoder",
    "PAnnealTrainer": "AutoEncoder",
    "StandardTrainerAprilUpdate": "AutoEncoder",
    "GatedSAETrainer": "GatedAutoEncoder",
    "GatedAnnealTrainer": "GatedAutoEncoder",
    "JumpReluTrainer": "JumpReluAutoEncoder",
    "TopKTrainer": "AutoEncoderTopK",
    "BatchTopKTrainer": "BatchTopKSAE",
    "MatryoshkaBatchTopKTrainer": "MatryoshkaBatchTopKSAE",
}
_SITE = re.compile(r"(?:resid_(?:pre|mid|post)|mlp_out|attn_out)_layer_\d+")


def recognise(files: SaeFiles) -> bool:
    return bool(files.matching(_WEIGHTS)) and files.has("config.json") and "trainer" in files.config("config.json")


def read(files: SaeFiles) -> Layout:
    trainer = files.config("config.json").section("trainer")
    file = files.tensors(files.one(_WEIGHTS))
    d_in = trainer.same_count(("activation_dim", "d_in"))
    d_sae = trainer.same_count(("dict_size", "d_sae"))
    if d_in is None or d_sae is None:
        raise SAEInvalidError("config.json does not say activation_dim and dict_size", check="config.activation_dim")
    kind = _CLASSES[_class_name(trainer, file)]
    sizes = Sizes(d_in, d_sae, d_in)
    k = check_k(_k(trainer, file), d_sae, "config.json") if kind.activation == "topk" else None
    hook_name, point = _hook(trainer, files.origin_of(file))
    layer = trainer.count("layer", least=0)
    return layout(
        file,
        assemble(file, kind.names, sizes, ignored=kind.ignored, broadcast=("threshold",)),
        Recipe(activation=kind.activation, k=k, subtract_b_dec=kind.subtract),
        sizes,
        format=NAME,
        architecture=kind.architecture,
        trained_on=trainer.text("lm_name"),
        trained_layer=layer,
        hook_name=hook_name,
        hook_point=point,
        warnings=() if point else (f"the hook {str(hook_name)[:100]} is no known hook point",),
        unit_decoder=kind.unit_decoder,
    )


def _class_name(trainer: Config, file: TensorFile) -> str:
    name = trainer.text("dict_class") or _OF_TRAINER.get(trainer.text("trainer_class") or "")
    if name in _CLASSES:
        return name
    if name is not None:
        raise SAEUnsupportedError(f"dict_class {name[:60]}", architecture=name[:60])
    if "gate_bias" in file:
        return "GatedAutoEncoder"
    if "bias" in file:
        return "AutoEncoder"
    if "decoder.bias" in file:
        return "AutoEncoderNew"
    raise SAEInvalidError("config.json does not say dict_class, and the tensors do not tell", check="config.dict_class")


def _k(trainer: Config, file: TensorFile) -> int | None:
    k = trainer.count("k")
    if "k" not in file:
        return k
    stored = scalar(file.tensors["k"])
    if k is not None and stored != k:
        raise SAEInvalidError(f"config.json says k is {k}, the weights {stored:g}", check="k")
    return int(stored)


def _hook(trainer: Config, origin: Origin) -> tuple[str | None, HookPoint | None]:
    """By submodule_name or, where that is none, by a folder called like `resid_post_layer_3`."""
    model = trainer.text("lm_name")
    name = trainer.text("submodule_name")
    point = parse_hook(name, model=model)
    if point is not None:
        return name, point
    folder = next((part for part in reversed(origin.parts) if _SITE.fullmatch(part)), None)
    return (folder, parse_hook(folder)) if folder else (name, None)
