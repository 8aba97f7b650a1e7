"""The three shapes as one family."""

from __future__ import annotations

from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..layout import Layout
from . import gguf, steering_config, tensors
from .found import ARCHITECTURE

_SHAPES = (tensors, gguf, steering_config)


def recognise(files: SaeFiles) -> bool:
    return any(shape.recognise(files) for shape in _SHAPES)


def read(files: SaeFiles) -> Layout:
    found: Layout = next(shape.read(files) for shape in _SHAPES if shape.recognise(files))
    return found


FORMAT = Format(
    "vectors",
    # In a long list of names *.gguf are models: only the service's own name shows vectors there.
    Naming((tensors.FILE,)),
    (ARCHITECTURE,),
    recognise,
    read,
    patterns=(tensors.FILE, "*.gguf", "*.pt"),
)
