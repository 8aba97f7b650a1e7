"""Where a model's files are: in a local folder, or in the user's hub cache, where `hub.child.models` puts them.

A model of an unknown type is refused before its weights are looked at; pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ...errors import ModelLoadError, ModelNotFoundError
from ...models.files import (
    CONFIG,
    SMALL,
    is_complete,
    is_hub_id,
    local_folder,
    read_config,
    refuse_pointers,
    weight_names,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")


class LoadCancelled(Exception):  # noqa: N818 — a cancel is not an error
    """Raised inside a cancelled load."""


class ModelFiles(NamedTuple):
    """A model that is complete on disk."""

    folder: Path
    commit: str | None
    """None for a local folder."""
    names: tuple[str, ...]
    """Every file of the model, sorted."""


DEFAULT_REVISION = "main"
"""The only revision of a folder."""


def find_model(model: str, revision: str) -> ModelFiles:
    """The files of `model` (hub id, or path of a folder) on this machine.

    Raises `ModelNotFoundError`, `ModelLoadError`.
    """
    folder = local_folder(model)
    if folder is not None:
        if revision != DEFAULT_REVISION:
            raise ModelLoadError(f"{model} is a folder, which has no revision {revision}: leave revision out")
        return _files_of(folder, None)
    if not is_hub_id(model):
        raise ModelNotFoundError(f"{model} is neither a folder with a model nor the id of one on the hub", model=model)
    cached = _cached(model, revision)
    if cached is None:
        why = "and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"or not whole at {revision}"
        raise ModelNotFoundError(f"{model} is not in the cache, {why}", model=model)
    return cached


def settings_folder(model: str, revision: str) -> Path:
    """A folder with the config of `model`, which is checked; no other file is fetched from a hub. Raises as
    `find_model`."""
    folder = local_folder(model) or _fetched_settings(model, revision)
    read_config(folder)
    return folder


def _fetched_settings(model: str, revision: str) -> Path:
    if not is_hub_id(model):
        raise ModelNotFoundError(f"{model} is neither a folder with a model nor the id of one on the hub", model=model)
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=[CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelNotFoundError(f"the hub gives no settings of {model} at {revision}: {error}", model=model) from error


def digests(files: ModelFiles, cancelled: threading.Event) -> dict[str, str]:
    """sha256 of every file. `ModelLoadError` for one in the hub's cache that does not match its name.

    The cache names files of large-file storage by their sha256, and does not check it.
    """
    found = {}
    for name in files.names:
        if cancelled.is_set():
            raise LoadCancelled
        with (files.folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        expected = (files.folder / name).resolve().name
        if files.commit is not None and _SHA256.fullmatch(expected) and expected != found[name]:
            raise ModelLoadError(f"{name} in the cache is damaged: remove it, and load the model again", check=name)
    return found


def _files_of(folder: Path, commit: str | None) -> ModelFiles:
    weights = weight_names(folder)
    missing = [name for name in weights if not (folder / name).is_file()]
    if missing:
        raise ModelLoadError(f"the model's files are not complete: {missing[0]} is missing")
    small = {path.name for pattern in SMALL for path in folder.glob(pattern) if path.is_file()}
    names = tuple(sorted(small | set(weights)))
    refuse_pointers(folder, names)
    return ModelFiles(folder, commit, names)


def _cached(model: str, revision: str) -> ModelFiles | None:
    """The model as it is in the user's cache, if it is complete there."""
    try:
        # One file at a time: for all, it fails if any unneeded file was never fetched.
        folder = Path(
            huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=[CONFIG])
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return _files_of(folder, folder.name) if is_complete(folder) else None
