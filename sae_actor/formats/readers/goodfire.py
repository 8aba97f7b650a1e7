"""Goodfire: one .pth or .pt at the repository's root, torch.nn.Linear names, ReLU, b_dec not subtracted.

Model and layer are in the file's name: `Llama-3.1-8B-Instruct-SAE-l19.pth`, the output of that layer.
"""

from __future__ import annotations

import re

from ..assembly import Alias, Names
from ..file_names import Naming
from ..files import SaeFiles
from ..layout import Layout
from .named_file import read_residual

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
    return read_residual(files, _FILE, _NAMES, format=NAME, organisations={"Llama": "meta-llama"})
