"""What is in a backup, and under which names: those of the data folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from ..domain.state import State
from ..domain.structs import filled
from ..hub.kept_files import IMPORTS, KeptFile
from ..ports import Head

FOLDERS = ("labels", "vectors", "runs")
"""Folders of the data folder that every backup has."""
SAE_FOLDERS = ("hub", IMPORTS)
"""Where the files of SAEs lie in it."""
MANIFEST = "manifest.json"
"""The last member."""
FORMAT = 1
BEGUN = ".tmp"
"""Ends the names of files and folders that are being written."""
RESTORING = "restore.tmp"
"""What a restore writes in, inside the folder that it makes: no folder can be renamed onto a volume."""
INCOMING = "incoming"
"""A folder of what is still on its way."""
DATABASE = ".db"
"""Ends the names of SQLite's databases, which are copied through SQLite."""
BESIDE_DATABASE = ("-wal", "-shm", "-journal")


class ListedFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member, as the manifest has it."""

    path: str
    bytes: int = 0
    sha256: str = ""
    """Empty for a link."""
    link: str | None = None
    """What a symbolic link says."""


class SaeAtHead(Struct, frozen=True, kw_only=True):
    """An SAE on record at this head."""

    sae_id: str
    source: str
    repository_id: str | None
    revision: str | None
    path: str | None
    commit: str | None
    weights_sha256: str
    included: bool
    """Its files are in the backup; else they have to be brought."""


class ModelAtHead(Struct, frozen=True, kw_only=True):
    """The model at this head, which no backup holds."""

    model: str
    revision: str
    commit: str | None


class Manifest(Struct, frozen=True, kw_only=True):
    format: int
    made_by: str
    time: str
    log_id: str
    branch_id: str | None
    """Of the last LogForked, if there is one."""
    head: Head
    witnessed: bool
    """`head.checkpoint` is among the files; without one a loss at the log's end would go unnoticed."""
    model: ModelAtHead | None
    saes: tuple[SaeAtHead, ...]
    files: tuple[ListedFile, ...] = ()


class ArchiveMember(NamedTuple):
    """What is to be written."""

    name: str
    path: Path
    link: str | None = None
    through_sqlite: bool = False
    """A database that somebody may be writing: its bytes alone may be those of no moment."""
    second: Path | None = None
    """A second name of such a database, for when the first is gone: nobody writes in it any more then."""
    at_rest: bool = False
    """Nobody writes in such a database: no file may be made beside it."""


def listed_saes(state: State, *, included: bool) -> tuple[SaeAtHead, ...]:
    """Vectors are in every backup."""
    return tuple(
        filled(SaeAtHead, record, included=included or record.source == "vectors")
        for record in state.saes.values()
        if record.sae is not None
    )


def listed_model(state: State) -> ModelAtHead | None:
    model = state.model
    if model is None:
        return None
    return filled(ModelAtHead, model, commit=None if model.facts is None else model.facts.commit)


def members(data: Path, kept: Iterable[KeptFile], aside: Path | None) -> Iterator[ArchiveMember]:
    """The files of the folders above, and those of SAEs.

    aside: a folder on the same file system; None if nobody writes in this one. Each file gets a second name there, so
    that it can be read to its end though it may be deleted meanwhile; no byte is copied. Files are written once, under
    another name, so none changes.
    """
    found = [ArchiveMember(str(path.relative_to(data)), path) for name in FOLDERS for path in _whole(data / name)]
    found += [ArchiveMember(each.name, each.path, each.link) for each in kept]
    for number, member in enumerate(found):
        if member.link is None and member.name.endswith(DATABASE):
            second = aside and _second_of_database(member.path, aside, number)
            yield member._replace(through_sqlite=True, second=second, at_rest=aside is None)
            continue
        if aside is None or member.link is not None:
            yield member
            continue
        path = aside / str(number)
        try:
            os.link(member.path, path, follow_symlinks=True)
        except FileNotFoundError:
            continue  # it was deleted just now
        except OSError:
            path = member.path  # another file system, or one without links: it is read where it is
        yield member._replace(path=path)


def _second_of_database(path: Path, aside: Path, number: int) -> Path | None:
    """With its write-ahead log, which what is erased leaves behind. Used by no one while the first is there."""
    second = aside / f"{number}{DATABASE}"
    for suffix in ("-wal", ""):
        try:
            os.link(f"{path}{suffix}", f"{second}{suffix}", follow_symlinks=True)
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return second if second.exists() else None


def _whole(folder: Path) -> Iterator[Path]:
    """The files that are complete, in order."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != INCOMING and not name.endswith(BEGUN))
        for name in sorted(names):
            path = Path(place, name)
            if not name.endswith((BEGUN, *BESIDE_DATABASE)) and not path.is_symlink():
                with contextlib.suppress(OSError):
                    if path.is_file():
                        yield path
