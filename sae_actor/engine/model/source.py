"""Where a model's files come from: a local folder, the user's hub cache, or the hub.

Only what is needed is fetched: the small files first, then the safetensors files that the index names. A model
of an unknown type is refused before its weights are fetched; pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented, but not marked as exported

from ...errors import ModelLoadError, ModelNotFoundError, SAEError
from ...models.files import SMALL, is_complete, is_hub_id, local_folder, refuse_pointers, weight_names
from ...ports import OnProgress, Progress
from ..failures import explained

_SHA256 = re.compile(r"[0-9a-f]{64}")


class LoadCancelled(Exception):  # noqa: N818 — no error: somebody changed their mind
    """Raised inside a cancelled load."""


class ModelFiles(NamedTuple):
    """A model that is complete on disk."""

    folder: Path
    commit: str | None
    """None for a local folder."""
    names: tuple[str, ...]
    """Every file that the model is made of, sorted."""


DEFAULT_REVISION = "main"
"""The only revision of a folder."""


def find_model(model: str, revision: str, progress: OnProgress, cancelled: threading.Event) -> ModelFiles:
    """Bring the files of `model` (hub id, or path of a folder) to this machine.

    Raises `ModelNotFoundError`, `ModelLoadError`, `DiskFullError`; `LoadCancelled` when `cancelled` is set.
    """
    folder = local_folder(model)
    if folder is not None:
        if revision != DEFAULT_REVISION:
            raise ModelLoadError(f"{model} is a folder, which has no revision {revision}: leave revision out")
        return _files_of(folder, None)
    if not is_hub_id(model):
        raise ModelNotFoundError(f"{model} is neither a folder with a model nor the id of one on the hub", model=model)
    cached = _cached(model, revision)
    return cached if cached is not None else _fetched(model, revision, progress, cancelled)


def digests(files: ModelFiles, cancelled: threading.Event) -> dict[str, str]:
    """sha256 of every file. `ModelLoadError` for one in the hub's cache that does not match its name.

    The cache names what is in large-file storage by its sha256, and does not check it.
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
            huggingface_hub.snapshot_download(
                model, revision=revision, local_files_only=True, allow_patterns=["config.json"]
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return _files_of(folder, folder.name) if is_complete(folder) else None


def _fetched(model: str, revision: str, progress: OnProgress, cancelled: threading.Event) -> ModelFiles:
    failure: SAEError
    try:
        return _fetch(model, revision, _bar(model, progress, cancelled))
    except LoadCancelled:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries; all become ours
        if cancelled.is_set():
            raise LoadCancelled from None
        failure = _hub_failure(error, model, revision)
    raise failure


def _fetch(model: str, revision: str, bar: type[tqdm]) -> ModelFiles:
    def download(patterns: list[str], at: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                model,
                revision=at,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                tqdm_class=bar,
            )
        )

    folder = download(list(SMALL), revision)
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{model} is not a model: it has no config.json", model=model)
    commit = folder.name
    weights = weight_names(folder)
    download(weights, commit)
    if not (folder / weights[0]).is_file():
        raise ModelLoadError(f"{model} has no weights as safetensors; other kinds are not read")
    return _files_of(folder, commit)


def _hub_failure(error: Exception, model: str, revision: str) -> SAEError:
    match error:
        case GatedRepoError():
            return ModelLoadError(
                f"{model} is gated: accept its terms on the hub and set HF_TOKEN", model=model, reason="gated"
            )
        case RepositoryNotFoundError() | RevisionNotFoundError() | HFValidationError():
            return ModelNotFoundError(f"the hub has no {model} at {revision}, or it is private", model=model)
        case LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return ModelNotFoundError(f"{model} is not in the cache, and HF_HUB_OFFLINE is set", model=model)
        case LocalEntryNotFoundError():
            return ModelLoadError(f"the hub could not be reached to load {model}", model=model, reason="network")
        case EntryNotFoundError():
            return ModelNotFoundError(f"the hub has no {model} at {revision}, or it is private", model=model)
    ours = explained(error, f"fetching {model}")
    return ours if ours.code != "internal" else ModelLoadError(ours.detail, model=model, reason="network")


def _bar(model: str, progress: OnProgress, cancelled: threading.Event) -> type[tqdm]:
    """A progress bar that shows nothing, reports bytes, and ends a cancelled download."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes = kwargs.get("unit") == "B"
            self._done = 0.0
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]  # tqdm has no types
            self.total = kwargs.get("total")

        def update(self, n: float | None = 1) -> bool | None:
            if cancelled.is_set():
                raise LoadCancelled
            self._done += n or 0
            if self._bytes:
                done, total = int(self._done), int(self.total or 0)
                progress(Progress(kind="load", subject=model, phase="fetching", done=done, total=total))
            return None

    return Bar
