"""Goodfire: one .pth or .pt at the repository's root, torch.nn.Linear names, ReLU, b_dec not subtracted.

Model and layer are in the file's name: `Llama-3.1-8B-Instruct-SAE-l19.pth`, the output of that layer.
"""

from __future__ import annotations

import re

from .building import Alias, Names, Sizes, assemble, layout, side
from .files import SaeFiles
from .layout import Layout, Recipe
from .named import named_residual
from .naming import Naming

NAME = "goodfire"
NAMING = Naming(("Llama-*-SAE-l#.pth", "Llama-*-SAE-l#.pt", "Llama-*-SAE-l#.safetensors"), one_per_file=True)
FILES = ("*-SAE-l*.pth", "*-SAE-l*.pt", "*-SAE-l*.safetensors")
ARCHITECTURES = ("standard",)

_FILE = re.compile(r".+\.(?:pt|pth|safetensors)")
_NAMES: Names = {
    "W_enc": (Alias("encoder_linear.weight", transposed=True),),
    "b_enc": (Alias("encoder_linear.bias"),),
    "W_dec": (Alias("decoder_linear.weight", transposed=True),),
    "b_dec": (Alias("decoder_linear.bias"),),
}


def recognise(files: SaeFiles) -> bool:
    return files.holds(_FILE, "encoder_linear.weight", "decoder_linear.weight")


def read(files: SaeFiles) -> Layout:
    file = files.tensors(files.one(_FILE))
    sizes = Sizes(side(file, _NAMES, "W_enc", 0), side(file, _NAMES, "W_enc", 1), side(file, _NAMES, "W_dec", 1))
    place = named_residual(file.name, files.origin_of(file), {"Llama": "meta-llama"})
    return layout(
        file,
        assemble(file, _NAMES, sizes),
        Recipe(),
        sizes,
        format=NAME,
        architecture="standard",
        trained_on=place.model,
        hook_name=place.hook_name,
        hook_point=place.hook_point,
        warnings=place.warnings,
    )
