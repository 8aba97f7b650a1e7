"""Releases of one file, called after the model and the layer whose output it was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ...domain.refs import HookPoint
from ..assembly import Names, Sizes, assemble, layout, side
from ..files import Origin, SaeFiles
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


def read_residual(
    files: SaeFiles, pattern: re.Pattern[str], names: Names, *, format: str, organisations: Mapping[str, str]
) -> Layout:
    """The layout of a standard SAE in the one file whose name matches, all else being said by that name."""
    file = files.tensors(files.one(pattern))
    sizes = Sizes(side(file, names, "W_enc", 0), side(file, names, "W_enc", 1), side(file, names, "W_dec", 1))
    place = named_residual(file.name, files.origin_of(file), organisations)
    return layout(
        file,
        assemble(file, names, sizes),
        Recipe(),
        sizes,
        format=format,
        architecture="standard",
        trained_on=place.model,
        hook_name=place.hook_name,
        hook_point=place.hook_point,
        warnings=place.warnings,
    )
