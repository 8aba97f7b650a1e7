"""Transcoder sets with one `layer_{n}.safetensors` per layer, side by side (mwhanna's for Qwen 3).

    f = relu(x @ W_encᵀ + b_enc);  ŷ = f @ W_dec + b_dec        W_enc [d_sae, d_in], W_dec [d_sae, d_out]

x is the input of the MLP, after the norm's weight; ŷ its output. `wandb-config.yaml` (once spelt wanb-) holds
the sizes, `config.yaml` the model, both for all layers.
"""

from __future__ import annotations

import re

from ..domain.refs import HookPoint
from ..errors import SAEInvalidError
from .building import Alias, Names, Sizes, assemble, layout, side
from .config import Config
from .files import SaeFiles
from .layout import Layout, Recipe
from .naming import Naming
from .yaml_config import yaml_config

NAME = "layer_file"
NAMING = Naming(
    ("layer_#.safetensors",),
    (("config.yaml",), ("wandb-config.yaml", "wanb-config.yaml")),
    one_per_file=True,
)
FILES = NAMING.files
ARCHITECTURES = ("transcoder", "skip_transcoder")

_FILE = re.compile(r"layer_(\d{1,3})\.safetensors")
_NAMES: Names = {
    "W_enc": (Alias("W_enc", transposed=True),),
    "b_enc": (Alias("b_enc"),),
    "W_dec": (Alias("W_dec"),),
    "b_dec": (Alias("b_dec"),),
    "W_skip": (Alias("W_skip"),),
}
_REPOSITORY = re.compile(r"qwen3-(\d+(?:\.\d+)?)b-transcoders.*", re.IGNORECASE)


def recognise(files: SaeFiles) -> bool:
    return bool(files.matching(_FILE))


def read(files: SaeFiles) -> Layout:
    name = files.one(_FILE)
    match = _FILE.fullmatch(name)
    assert match is not None
    layer = int(match[1])
    file = files.tensors(name)
    sizes = Sizes(side(file, _NAMES, "W_enc", 0), side(file, _NAMES, "W_enc", 1), side(file, _NAMES, "W_dec", 1))
    run = files.first("wandb-config.yaml", "wanb-config.yaml")
    if run is not None:
        _compare(yaml_config(files.text(run), run), sizes)
    return layout(
        file,
        assemble(file, _NAMES, sizes, optional=("W_skip",)),
        Recipe(norm_output=False),
        sizes,
        format=NAME,
        architecture="skip_transcoder" if "W_skip" in file else "transcoder",
        trained_on=_model(files),
        trained_layer=layer,
        hook_name=f"blocks.{layer}.mlp.hook_in",
        hook_point=HookPoint("mlp_in", layer),
        hook_point_out=HookPoint("mlp_out", layer),
    )


def _compare(run: Config, sizes: Sizes) -> None:
    for key, size in (("d_model", sizes.d_in), ("d_feature", sizes.d_sae)):
        wanted = run.section(key).count("value") if isinstance(run.values.get(key), dict) else run.count(key)
        if wanted is not None and wanted != size:
            raise SAEInvalidError(f"{run.where}: {key} is {wanted}, the tensors have {size}", check="shape")


def _model(files: SaeFiles) -> str | None:
    if files.has("config.yaml"):
        return yaml_config(files.text("config.yaml"), "config.yaml").text("model_name")
    for part in ((files.origin.repository_id or "").rpartition("/")[2], *reversed(files.origin.parts)):
        if match := _REPOSITORY.fullmatch(part):
            return f"Qwen/Qwen3-{match[1]}B"
    return None
