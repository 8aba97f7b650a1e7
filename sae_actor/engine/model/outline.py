"""A model without its weights: its modules on torch's meta device, made from its config alone.

It helps to add a model type: it shows the modules of its blocks, and the families all of whose modules they have. Equal
names do not show that the modules do the same: tests compare their results. Nothing is decided by this at run time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from ...errors import ModelLoadError
from ...models.families import FAMILIES
from ..failures import attempt
from ..interventions.hook_points import Architecture
from .building import bounded
from .loading import text_config
from .source import settings_folder

DEPTH = 2
"""Modules below a block are named down to this depth."""


class Layers(NamedTuple):
    """Blocks that are built alike."""

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    """`path: class`, in the order of the code."""


class Outline(NamedTuple):
    """The blocks of a model."""

    model_type: str
    blocks: str
    """Path of the list of blocks."""
    kinds: tuple[Layers, ...]
    fitting: dict[tuple[str, ...], tuple[str, ...]]
    """Model types that share a family all of whose modules are there → the hook points of that family."""


def without_weights(config: Any) -> Any:
    """The transformers model of a config, in bfloat16; it takes no memory, and computes shapes only."""
    with bounded(), torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def outline_of(model: str, revision: str) -> Outline:
    """The modules of a model (folder, or hub id at a revision); only its config is fetched.

    `ModelNotFoundError`; `ModelLoadError` for settings from which transformers cannot build a text model.
    """
    transformers.logging.set_verbosity_error()

    def read() -> Outline:
        folder = settings_folder(model, revision)
        return outline(text_config(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)))

    return attempt(read, f"reading the settings of {model}", ModelLoadError, model=model)


def outline(config: Any) -> Outline:
    """The modules of a model with that config. `ModelLoadError` if it has no list of blocks."""
    network = without_weights(config)
    count = config.num_hidden_layers
    found = (
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )
    path, blocks = next(found, (None, None))
    if path is None or blocks is None:
        raise ModelLoadError(f"no list of {count} blocks was found in {type(network).__name__}")
    alike: dict[tuple[str, ...], list[int]] = {}
    for layer, block in enumerate(blocks):
        alike.setdefault(tuple(_modules(block)), []).append(layer)
    return Outline(
        model_type=config.model_type,
        blocks=path,
        kinds=tuple(Layers(tuple(layers), modules) for modules, layers in alike.items()),
        fitting=dict(_fitting(network, config)),
    )


def _modules(block: nn.Module) -> list[str]:
    return [
        f"{name}: {type(module).__name__}" for name, module in block.named_modules() if name and name.count(".") < DEPTH
    ]


def _fitting(network: nn.Module, config: Any) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    rows: list[tuple[list[str], tuple[str, ...]]] = []
    seen: dict[int, list[str]] = {}
    for name, family in FAMILIES.items():
        if id(family) in seen:
            seen[id(family)].append(name)
            continue
        try:
            architecture = Architecture(network, config, family)
        except ModelLoadError:
            continue
        seen[id(family)] = names = [name]
        rows.append((names, tuple(architecture.widths)))
    return [(tuple(names), kinds) for names, kinds in rows]
