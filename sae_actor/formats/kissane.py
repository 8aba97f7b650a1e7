"""Kissane's attention SAEs for GPT-2: `NAME.pt` and `NAME_cfg.json` at the repository's root, on flattened hook_z.

f = relu((z − b_dec) @ W_enc + b_enc);  ẑ = f @ W_dec + b_dec        mathematical orientation
"""

from __future__ import annotations

import re

from ..errors import SAEInvalidError
from .building import Alias, Names, Sizes, assemble, layout
from .files import SaeFiles
from .hooks import parse_hook, parse_layer
from .layout import Layout, Recipe
from .naming import Naming

NAME = "kissane"
NAMING = Naming(("*.pt", "*.safetensors"), (("{stem}_cfg.json",),), needs_config=True, one_per_file=True)
FILES = NAMING.files
ARCHITECTURES = ("standard",)

_FILE = re.compile(r"(.+)\.(?:pt|safetensors)")
_NAMES: Names = {name: (Alias(name),) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}

VALUE_BIAS = (
    "trained on hook_z of a library that may move the value bias into the output's: a model's own heads then "
    "differ by it"
)


def recognise(files: SaeFiles) -> bool:
    return any(files.has(_config(name)) for name in files.matching(_FILE))


def read(files: SaeFiles) -> Layout:
    found = [name for name in files.matching(_FILE) if files.has(_config(name))]
    if len(found) != 1:
        raise SAEInvalidError(f"{len(found)} SAEs are in this folder, name one file", check="ambiguous")
    cfg = files.config(_config(found[0]))
    d_in, d_sae = cfg.count("act_size"), cfg.count("dict_size")
    if d_in is None or d_sae is None:
        raise SAEInvalidError(f"{cfg.where} does not say act_size and dict_size", check="config.act_size")
    file = files.tensors(found[0])
    sizes = Sizes(d_in, d_sae, d_in)
    hook_name = cfg.text("act_name")
    point = parse_hook(hook_name)
    return layout(
        file,
        assemble(file, _NAMES, sizes),
        Recipe(subtract_b_dec=True, heads=True),
        sizes,
        format=NAME,
        architecture="standard",
        trained_on=cfg.text("model_name"),
        trained_layer=parse_layer(hook_name),
        hook_name=hook_name,
        hook_point=point,
        warnings=(VALUE_BIAS,),
    )


def _config(name: str) -> str:
    return f"{name.rpartition('.')[0]}_cfg.json"
