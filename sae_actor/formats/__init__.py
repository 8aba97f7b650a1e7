"""On-disk formats of sparse autoencoders, read without torch.

    config, files, headers    JSON, links and weight headers, read as hostile data
    layout                    what a reader hands on: where each tensor lies, and the formula (`Recipe`)
    assembly                  names and shapes to canonical tensors
    hook_names, file_names    hook points by the names of hooks and files
    settings/                 what becomes of every key of a settings file
    lfs                       git-lfs pointers in place of files
    format, readers/          `Format`, and one module per family
    vectors/                  directions without an encoder, in three shapes of files
    registry, refused         `FORMATS`, the choice among them, and what is refused by name
    finite                    a look at every stored number, without torch
    pickles, pickle_child     state dicts read by torch's restricted reader, or made safetensors by a child

A reader never touches the weights: `describe` shows its description, `sae.load_sae` turns the same layout
into tensors. So no format needs torch (`pickles` imports it when it reads one), and none is described in one way
and loaded in another.
"""

from __future__ import annotations

import os

from ..domain.refs import SaeDescription
from .files import SaeFiles
from .finite import check_finite
from .format import Format
from .registry import FORMATS, read_layout


def describe(
    path: str | os.PathLike[str], *, repository_id: str | None = None, layer: int | None = None
) -> SaeDescription:
    """What the files at `path` (a folder, or the weight file in it) say, without reading a weight.

    `repository_id` helps where a release puts the place in the model into its repository's name only; a path in
    the hub's cache carries it already. `layer` chooses in a file with vectors of several; without it such a file is
    `SAEAmbiguousError`. Raises `SAENotFoundError` (nothing there), `SAEInvalidError` (keyword
    `check` names the test that failed), `SAEUnsupportedError` (refused by name: pickles among others).
    """
    return read_layout(SaeFiles(path, repository_id=repository_id, layer=layer)).description


def weight_files(path: str | os.PathLike[str], *, layer: int | None = None) -> list[str]:
    """The files that hold weights, relative to the folder at `path` (or of the file). Raises as `describe`."""
    return list(read_layout(SaeFiles(path, layer=layer)).files)


def check_values(path: str | os.PathLike[str], *, repository_id: str | None = None, layer: int | None = None) -> None:
    """Read every weight at `path` once; `SAEInvalidError` (check `finite`) where one is NaN or infinite.

    `load_sae` does so on its own, except for matrices that it maps. Raises as `describe` besides.
    """
    for weight in read_layout(SaeFiles(path, repository_id=repository_id, layer=layer)).weights.values():
        check_finite(weight.stored)
