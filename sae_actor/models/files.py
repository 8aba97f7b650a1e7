"""The files of a model: their names, for the hub that fetches them and the engine that reads them.

Weights are safetensors files; pickles are not read, and nothing executable is listed here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from ..formats.lfs import REMEDY, pointer_at
from .bounds import refuse_endless
from .families import FAMILIES, text_type

CONFIG = "config.json"
SMALL = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
"""Settings, tokenizer, templates: all files that a model needs besides its weights."""
MOST_BYTES = 64 * 1024 * 1024
"""Of a file of settings, or an index."""
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


def local_path(model: str) -> Path:
    """The path that `model` names if it is not an id: `~` is the user's home."""
    return Path(os.path.expanduser(model))  # left as it is for an unknown user: then no such path exists


def local_folder(model: str) -> Path | None:
    """The folder that `model` names, if there is a model in it."""
    folder = local_path(model)
    return folder if (folder / CONFIG).is_file() else None


def is_hub_id(model: str) -> bool:
    """Whether `model` could be the id of a repository: not a path, and without `..`."""
    return not Path(model).is_absolute() and _HUB_ID.fullmatch(model) is not None and ".." not in model


def is_small(name: str) -> bool:
    """Whether a model needs the file besides its weights; `name` is its path in the repository."""
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in SMALL)


def weight_names(folder: Path) -> list[str]:
    """Names of the files with the weights, from the index if there is one; the model's type is checked first.

    `ModelLoadError`; whether the files exist is not checked.
    """
    model_type = text_type(read_config(folder))
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelLoadError(
            f"models of type {model_type} are not supported; supported are {', '.join(sorted(FAMILIES))}",
            model_type=str(model_type),
            supported=sorted(FAMILIES),
        )
    if not (folder / INDEX).is_file():
        return [ONE_FILE]
    names = _read_json(folder / INDEX).get("weight_map")
    shards = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    if not shards or any(Path(name).name != name or not name.endswith(".safetensors") for name in shards):
        raise ModelLoadError(f"{INDEX} does not name the files of the weights")
    return shards


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in the folder of a model. `ModelLoadError`, also for more than there is of anything."""
    settings = _read_json(folder / CONFIG)
    refuse_endless(settings)
    return settings


def is_complete(folder: Path) -> bool:
    """Whether settings, a tokenizer and all weights are there. `ModelLoadError` as `weight_names`."""
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in _TOKENIZERS):
        return False
    return all((folder / name).is_file() for name in weight_names(folder))


def refuse_pointers(folder: Path, names: Iterable[str]) -> None:
    """`ModelLoadError` for the first of these files that git-lfs has not fetched yet."""
    pointer = next((name for name in names if pointer_at(folder / name)), None)
    if pointer is not None:
        raise ModelLoadError(f"{pointer} of the model {REMEDY}", check="lfs_pointer", file=pointer)


def _read_json(path: Path) -> dict[str, Any]:
    refuse_pointers(path.parent, [path.name])
    if path.stat().st_size > MOST_BYTES:
        raise ModelLoadError(f"{path.name} of the model has more than {MOST_BYTES} bytes")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path.name} of the model is not a JSON object")
    return content
