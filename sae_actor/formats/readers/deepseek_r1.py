"""DeepSeek-R1 (qresearch): one .pt at the repository's root, torch.nn.Linear names, ReLU, b_dec not subtracted.

Model and layer are in the file's name: `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, the output of that layer.
"""

from __future__ import annotations

import re

from ..assembly import MATH, Names
from ..file_names import Naming
from ..files import SaeFiles
from ..layout import Layout
from .named_file import read_residual

NAME = "deepseek_r1"
NAMING = Naming(("DeepSeek-R1-*-l#.pt", "DeepSeek-R1-*-l#.safetensors"), one_per_file=True)
FILES = ("*-l*.pt", "*-l*.safetensors")
ARCHITECTURES = ("standard",)

_FILE = re.compile(r"(?:.*[-_.])?l\d{1,3}\.(?:pt|safetensors)")
_NAMES: Names = {name: aliases[1:] for name, aliases in MATH.items()}
_CONFIGS = ("cfg.json", "config.json", "hyperparams.json")


def recognise(files: SaeFiles) -> bool:
    wanted = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    return files.first(*_CONFIGS) is None and files.holds(_FILE, *wanted)


def read(files: SaeFiles) -> Layout:
    return read_residual(files, _FILE, _NAMES, format=NAME, organisations={"DeepSeek": "deepseek-ai"})
