"""Releases of one file at the repository's root: torch.nn.Linear names, ReLU, b_dec not subtracted.

Model and layer are in the file's name alone, and it is the output of that layer:

    goodfire       Llama-3.1-8B-Instruct-SAE-l19.pth
    deepseek_r1    DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt      (qresearch)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ...domain.refs import HookPoint
from ..assembly import MATH, Alias, Names, assemble, layout, sizes_of
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..format import Format
from ..layout import Layout, Recipe

_NAME = re.compile(r"(?P<model>.+)-SAE-l(?P<layer>\d{1,3})")
_LAYER = re.compile(r"(?:.*[-_.])?l(\d{1,3})")


class Place(NamedTuple):
    model: str | None
    hook_name: str | None
    hook_point: HookPoint | None
    warnings: tuple[str, ...]


def named_residual(file_name: str, origin: Origin, organisations: Mapping[str, str]) -> Place:
    """Model and hook out of `Model-SAE-l19.pt`, or out of the repository's name where the file's says less.

    `organisations`: first word of the model's name → the organisation that publishes it.
    """
    names = [re.sub(r"\.(?:pt|pth|safetensors)\Z", "", file_name), (origin.repository_id or "").rpartition("/")[2]]
    model = layer = None
    for name in names:
        if match := _NAME.fullmatch(name):
            model = model or match["model"]
        if layer is None and (found := _LAYER.fullmatch(name)):
            layer = int(found[1])
    if model is not None:
        publisher = organisations.get(model.partition("-")[0])
        model = f"{publisher}/{model}" if publisher else model
    if layer is None:
        return Place(model, None, None, ("the layer is in the file's name alone, which does not say it",))
    return Place(model, f"blocks.{layer}.hook_resid_post", HookPoint("resid_post", layer), ())


def _format(
    name: str,
    pattern: str,
    names: Names,
    naming: Naming,
    patterns: tuple[str, ...],
    *,
    publishers: Mapping[str, str],
    held: tuple[str, ...],
    without: tuple[str, ...] = (),
) -> Format:
    """A standard SAE in the one file that `pattern` matches and that holds the tensors `held`; there is no settings
    file of the names in `without`."""
    file_name = re.compile(pattern)

    def recognise(files: SaeFiles) -> bool:
        return files.first(*without) is None and files.holds(file_name, *held)

    def read(files: SaeFiles) -> Layout:
        file = files.tensors(files.one(file_name))
        sizes = sizes_of(file, names)
        place = named_residual(file.name, files.origin_of(file), publishers)
        return layout(
            file,
            assemble(file, names, sizes),
            Recipe(),
            sizes,
            architecture="standard",
            trained_on=place.model,
            hook_name=place.hook_name,
            hook_point=place.hook_point,
            warnings=place.warnings,
        )

    return Format(name, naming, ("standard",), recognise, read, patterns)


FORMATS = (
    _format(
        "goodfire",
        r".+\.(?:pt|pth|safetensors)",
        {
            "W_enc": (Alias("encoder_linear.weight", transposed=True),),
            "b_enc": (Alias("encoder_linear.bias"),),
            "W_dec": (Alias("decoder_linear.weight", transposed=True),),
            "b_dec": (Alias("decoder_linear.bias"),),
        },
        Naming(("Llama-*-SAE-l#.pth", "Llama-*-SAE-l#.pt", "Llama-*-SAE-l#.safetensors"), one_per_file=True),
        ("*-SAE-l*.pth", "*-SAE-l*.pt", "*-SAE-l*.safetensors"),
        publishers={"Llama": "meta-llama"},
        held=("encoder_linear.weight", "decoder_linear.weight"),
    ),
    _format(
        "deepseek_r1",
        r"(?:.*[-_.])?l\d{1,3}\.(?:pt|safetensors)",
        {name: aliases[1:] for name, aliases in MATH.items()},
        Naming(("DeepSeek-R1-*-l#.pt", "DeepSeek-R1-*-l#.safetensors"), one_per_file=True),
        ("*-l*.pt", "*-l*.safetensors"),
        publishers={"DeepSeek": "deepseek-ai"},
        held=("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
        without=("cfg.json", "config.json", "hyperparams.json"),
    ),
)
