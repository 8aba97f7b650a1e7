"""The files of one SAE, as a backup takes them along, and where those of an import are after a restore.

imports/<sae_id>/<path>     next to hub/: what a restore brought of an import, whose own folder may be missing here
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..domain.state import SaeLocation, SaeRecord
from ..domain.weights import import_id_of
from . import conversion
from .layout import DIGEST, Repository, is_safe_path, remove_folder

IMPORTS = "imports"


class KeptFile(NamedTuple):
    name: str
    """In the data folder."""
    path: Path
    """Where it is."""
    link: str | None = None
    """What it says, if it is a symbolic link."""


def import_folder(hub: Path, location: SaeLocation) -> Path:
    """The folder of an import: the user's own, or if that is not on this machine what a restore brought."""
    own = Path(location.path or "")
    brought = brought_folder(hub, location)
    return brought if not own.is_dir() and brought.is_dir() else own


def brought_folder(hub: Path, location: SaeLocation) -> Path:
    return hub.parent / IMPORTS / import_id_of(location.path or "", location.layer)


def remove_brought(hub: Path, location: SaeLocation) -> int:
    """Remove what a restore brought of an import; the bytes freed."""
    return remove_folder(brought_folder(hub, location))


def files_of(hub: Path, record: SaeRecord) -> list[KeptFile]:
    """All files of an SAE that is complete; of vectors none, which are in every backup anyway."""
    location = record.location
    originals = [file.path for file in location.files if file.converted_from is None and is_safe_path(file.path)]
    if location.source == "vectors":
        return []
    if location.source == "import":
        base, brought = import_folder(hub, location), brought_folder(hub, location)
        found = [(brought / name, base / name) for name in originals]
        return [*(_kept(hub, *each) for each in found), *_converted(hub, location)]
    if location.repository_id is None or not DIGEST.fullmatch(location.commit or ""):
        return []
    repository, commit = Repository.of(hub, location.repository_id), location.commit or ""
    kept: list[KeptFile] = []
    for name in originals:
        link = repository.link(commit, name)
        if link.is_symlink():
            blob = repository.blob(os.path.basename(os.readlink(link)))
            kept += [_kept(hub, blob, blob), KeptFile(_name(hub, link), link, os.readlink(link))]
    for path in (repository.ref(record.revision or "main"), repository.claims / f"{record.sae_id}.json"):
        if path.is_file():
            kept.append(_kept(hub, path, path))
    return [*kept, *_converted(hub, location)]


def _converted(hub: Path, location: SaeLocation) -> list[KeptFile]:
    key = conversion.key_at(location)
    found = [] if key is None else sorted(conversion.folder(hub, key).glob("*"))
    return [_kept(hub, path, path) for path in found]


def _kept(hub: Path, called: Path, path: Path) -> KeptFile:
    return KeptFile(_name(hub, called), path)


def _name(hub: Path, path: Path) -> str:
    return path.relative_to(hub.parent).as_posix()
