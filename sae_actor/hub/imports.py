"""SAEs that are on disk already: where they may lie, and what they are.

The user's files stay unchanged and are not copied; of a pickle the service keeps converted safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..domain.refs import SaeFile
from ..domain.weights import WeightsFile, WeightsFiles, weights_sha256
from ..errors import (
    ForbiddenError,
    NotFoundError,
    SAEAmbiguousError,
    SAEError,
    SAEInvalidError,
    SAEUnsupportedError,
)
from ..formats import FORMATS, check_values, describe, weight_files
from ..formats.files import SaeFiles
from ..ports import HubSae, OnProgress, Progress
from . import conversion
from .digests import KnownDigests
from .protocol import Done, ImportJob, Placed


def resolve(path: str, roots: Sequence[Path], layer: int | None = None) -> str:
    """The resolved folder of `path`; `ForbiddenError` unless it is in a root, `NotFoundError` unless it exists.

    In this order: whether anything exists outside the roots is not revealed. `SAEAmbiguousError` for vectors of several
    layers without `layer`; what else is wrong with the files is found when they are registered.
    """
    forbidden = ForbiddenError("The folder is not under one of [hub] import_roots", path=path)
    if not os.path.isabs(path) or "\0" in path:
        raise forbidden
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        raise forbidden
    if not real.is_dir():
        raise NotFoundError("There is no such folder", path=path)
    try:
        describe(real, layer=layer)
    except SAEAmbiguousError:
        raise
    except (SAEError, OSError):
        pass  # goes on record, as what came of the import
    return str(real)


def digest_of(path: str, known: KnownDigests, layer: int | None = None) -> str | None:
    """Digest of the weights in the folder as they lie there, by which imports are told apart; None if it has none."""
    folder = Path(path)
    try:
        try:
            describe(folder, layer=layer)
            names: Sequence[str] = weight_files(folder, layer=layer)
        except SAEUnsupportedError as error:
            if error.fields.get("check") != "pickle":
                return None
            names = [str(error.fields["file"])]
        return weights_sha256((name, known.of(folder / name)[1]) for name in names)
    except (SAEError, OSError):
        return None  # what is wrong is found, and goes on record, when it is registered


def register(path: str, known: KnownDigests, layer: int | None = None) -> HubSae:
    """Describe the folder, digest its files and check every weight.

    `SAEUnsupportedError` with check `pickle` and the name as `file` where `convert_and_register` can read it.
    """
    folder = _existing(path)
    sae = describe(folder, layer=layer)
    weights = weight_files(folder, layer=layer)
    try:
        files = [known.saefile(folder / name, name) for name in [*_settings(folder, sae.format, weights[0]), *weights]]
    except OSError as error:
        raise SAEInvalidError(f"a file cannot be read: {error.strerror}", check="files") from None
    # After the digest, which has brought the file into the page cache: it is read from the disk once.
    check_values(folder, layer=layer)
    held = tuple(WeightsFile(file.path, file.sha256) for file in files if file.path in set(weights))
    return HubSae(commit=None, files=tuple(files), sae=sae, weights_sha256=_digest(held), weights_files=held)


def convert_and_register(job: ImportJob, send: OnProgress) -> Done:
    """The same of a folder whose weights are a pickle, in a process of its own; what it converts is ours to keep."""
    folder = _existing(job.path)
    files = SaeFiles(folder)
    pickle = _pickle_of(folder)
    into = conversion.folder(Path(job.root), job.sae_id)
    converting = Progress(kind="import", subject=job.sae_id, phase="converting")
    converted = conversion.make(files, pickle, into, working=lambda: send(converting))
    where = Path(converted.at)
    sae = describe(where, layer=job.layer)
    check_values(where, layer=job.layer)
    known = KnownDigests()
    placed = []
    for name in [*_settings(folder, sae.format, pickle), pickle]:
        stamp, sha256 = known.of(folder / name)
        placed.append(Placed(SaeFile(name, stamp.bytes, sha256), stamp, str(folder / name)))
    held = (WeightsFile(converted.file.path, converted.file.sha256),)
    return Done(commit=None, files=(*placed, converted), sae=sae, weights_sha256=_digest(held), weights_files=held)


def _digest(held: WeightsFiles) -> str:
    return weights_sha256((file.path, file.sha256) for file in held)


def _existing(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise NotFoundError("There is no such folder", path=path)
    return folder


def _pickle_of(folder: Path) -> str:
    """The one pickle that `describe` would read if it were safetensors."""
    try:
        describe(folder)
    except SAEUnsupportedError as error:
        if error.fields.get("check") == "pickle":
            return str(error.fields["file"])
        raise
    raise SAEInvalidError("the files changed while they were read", check="changed")


def _settings(folder: Path, format: str, weights: str) -> list[str]:
    """Names of the settings files that the format reads next to these weights."""
    naming = next(each.naming for each in FORMATS if each.name == format)
    return naming.configs_of(weights, lambda name: (folder / name).is_file()) or []
