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

from ...domain.refs import HookPoint
from ...errors import SAEInvalidError, SAEUnsupportedError
from ..assembly import MATH, Alias, Names, Sizes, assemble, check_k, layout
from ..config import Config
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..format import Format
from ..headers import TensorFile, scalar
from ..hook_names import parse_hook
from ..layout import Activation, Layout, Recipe
from ..settings.keys import DATA, LOGGING, MACHINE, TRAINING, Keys, left

NAMING = Naming(
    ("ae.pt", "ae.safetensors", "ae_#.pt", "ae_#.safetensors"),
    (("config.json",),),
    needs_config=True,
    agrees=lambda settings: "trainer" in settings,
)

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
_LEFT = {
    "k": "how many features were on in a batch of training, on average",
    "threshold": "an estimate of training; the k largest are on",
    "group_sizes": "all groups are on when the SAE is used",
    "group_fractions": "all groups are on when the SAE is used",
}
"""Stored tensors that no activation depends on."""
TOP = Keys(
    heeded={"trainer": "", "buffer": ""},
)
TRAINER = Keys(
    heeded={
        "trainer_class": "dict_class says it",
        "dict_class": "",
        "activation_dim": "",
        "d_in": "",
        "dict_size": "",
        "d_sae": "",
        "k": _LEFT["k"],
        "layer": "",
        "lm_name": "",
        "submodule_name": "",
    },
    irrelevant={
        **left(TRAINING, "lr", "steps", "seed", "warmup_steps", "decay_start", "resample_steps", "l1_penalty"),
        **left(TRAINING, "sparsity_warmup_steps", "sparsity_penalty", "sparsity_function", "sparsity_queue_length"),
        **left(TRAINING, "n_sparsity_updates", "anneal_start", "p_start", "p_end", "auxk_alpha"),
        **left(TRAINING, "top_k_aux", "threshold_beta", "threshold_start_step", "bandwidth", "target_l0"),
        "norm_factor": "folded into the biases when the SAE was saved",
        **left(_LEFT["group_sizes"], "group_sizes", "group_fractions", "group_weights"),
        **left(MACHINE, "device"),
        **left(LOGGING, "wandb_name"),
    },
)
BUFFER = Keys(
    heeded={"io": "", "d_submodule": ""},
    irrelevant={
        **left(DATA, "ctx_len", "n_ctxs", "refresh_batch_size", "out_batch_size", "remove_bos"),
        **left(MACHINE, "device"),
        "layer": "the trainer's section says it",
    },
)
_SITE = re.compile(r"(resid_(?:pre|mid|post)|mlp_out|attn_out)_layer_(\d+)")


def recognise(files: SaeFiles) -> bool:
    return bool(files.matching(_WEIGHTS)) and files.has("config.json") and "trainer" in files.config("config.json")


def read(files: SaeFiles) -> Layout:
    cfg = files.config("config.json")
    trainer, buffer = cfg.section("trainer"), cfg.section("buffer")
    file = files.tensors(files.one(_WEIGHTS))
    d_in, d_sae = trainer.needed("activation_dim", "d_in"), trainer.needed("dict_size", "d_sae")
    kind = _CLASSES[_class_name(trainer, file)]
    sizes = Sizes(d_in, d_sae, d_in)
    k = check_k(_k(trainer, file), d_sae, "config.json") if kind.activation == "topk" else None
    width = buffer.count("d_submodule")
    if width not in (None, d_in):
        raise SAEInvalidError(
            f"config.json: the buffer's d_submodule is {width}, the SAE's activation_dim {d_in}",
            check="config.d_submodule",
        )
    hook_name, point = _hook(trainer, buffer, files.origin_of(file))
    warnings = [] if point else [f"the hook {str(hook_name)[:100]} is no known hook point"]
    layer = trainer.count("layer", least=0)
    if layer is not None and point is not None and layer != point.layer:
        warnings.append(f"layer is {layer}, the submodule's name says {point.layer}: the name counts")
        layer = point.layer
    return layout(
        file,
        assemble(file, kind.names, sizes, ignored=kind.ignored, broadcast=("threshold",)),
        Recipe(activation=kind.activation, k=k, subtract_b_dec=kind.subtract),
        sizes,
        architecture=kind.architecture,
        trained_on=trainer.text("lm_name"),
        trained_layer=layer,
        hook_name=hook_name,
        hook_point=point,
        warnings=warnings,
        settled=[(cfg, TOP, ""), (trainer, TRAINER, "trainer."), (buffer, BUFFER, "buffer.")],
        left={name: _LEFT[name] for name in kind.ignored if not (name == "k" and k)},
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


def _hook(trainer: Config, buffer: Config, origin: Origin) -> tuple[str | None, HookPoint | None]:
    """By submodule_name or, where that is none, by a folder called like `resid_post_layer_3`.

    Either names a submodule, and the buffer's `io` which side of it was trained on: `out` where it does not say.
    """
    side = buffer.text("io") or "out"
    if side not in ("in", "out"):
        raise buffer.unsupported("io")
    model = trainer.text("lm_name")
    folder = next((part for part in reversed(origin.parts) if _SITE.fullmatch(part)), None)
    names = [name for name in (trainer.text("submodule_name"), folder) if name]
    for name in names:
        shown = name if side == "out" else _input_of(name)
        point = parse_hook(shown, model=model if name != folder else None)
        if point is not None:
            return shown, point
    return (names[0] if side == "out" else _input_of(names[0]), None) if names else (None, None)


def _input_of(name: str) -> str:
    """The input of a submodule whose output `name` means: `resid_post_layer_3` is what layer 3 gives."""
    match = _SITE.fullmatch(name)
    if match is None:
        return f"{name}.input"
    module = {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".self_attn"}.get(match[1])
    return f"the input of {name}" if module is None else f"model.layers.{match[2]}{module}.input"


_ARCHITECTURES = tuple(dict.fromkeys(each.architecture for each in _CLASSES.values()))
FORMAT = Format(
    "dictionary_learning", NAMING, _ARCHITECTURES, recognise, read, ("ae.pt", "ae.safetensors", "config.json")
)
