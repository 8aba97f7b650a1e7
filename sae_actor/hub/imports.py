"""SAEs that are on disk already: where they may lie, and what they are. Nothing is copied, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ForbiddenError, NotFoundError, SAEInvalidError
from ..formats import describe, weight_files
from ..ports import HubSae
from .digests import KnownDigests, weights_sha256
from .selection import CONFIGS


def resolve(path: str, roots: Sequence[Path]) -> str:
    """The folder that `path` really is; `ForbiddenError` unless it lies in a root, `NotFoundError` unless it is there.

    In this order: whether anything exists outside the roots is not told.
    """
    forbidden = ForbiddenError("The folder is not under one of [hub] import_roots", path=path)
    if not os.path.isabs(path) or "\0" in path:
        raise forbidden
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        raise forbidden
    if not real.is_dir():
        raise NotFoundError("There is no such folder", path=path)
    return str(real)


def register(path: str, known: KnownDigests) -> HubSae:
    """Describe the folder and digest its files: the weights, and the settings beside them."""
    folder = Path(path)
    if not folder.is_dir():
        raise NotFoundError("There is no such folder", path=path)
    sae = describe(folder)
    weights = weight_files(folder)
    configs = [name for name in CONFIGS if (folder / name).is_file()]
    files = []
    for name in [*configs, *(name for name in weights if name not in configs)]:
        try:
            files.append(known.saefile(folder / name, name))
        except OSError as error:
            raise SAEInvalidError(f"{name} cannot be read: {error.strerror}", check="files", file=name) from None
    digests = weights_sha256((file.path, file.sha256) for file in files if file.path in set(weights))
    return HubSae(commit=None, files=tuple(files), sae=sae, weights_sha256=digests)
