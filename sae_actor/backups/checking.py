"""A backup read as a tar that anyone may have made: names, kinds and digests, before a byte of it is used."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from ..errors import LogDamagedError, NotFoundError
from ..eventlog.checkpoint import NAME as CHECKPOINT
from ..eventlog.schema import NAME as DATABASE
from ..hub.layout import is_safe_path
from .contents import FOLDERS, FORMAT, MANIFEST, SAE_FOLDERS, ListedFile, Manifest

CHUNK = 1 << 20
MANIFEST_BYTES = 64 << 20
_LINK = re.compile(r"hub/models--[^/]+/snapshots/(?P<inner>[0-9a-f]{40,64}/.+)")
_BLOB = re.compile(r"(?P<up>(?:\.\./)+)blobs/(?P<digest>[0-9a-f]{40}|[0-9a-f]{64})")


class BackupFile:
    """An open backup whose members are those of its manifest, to the last byte."""

    def __init__(self, tar: tarfile.TarFile, manifest: Manifest, members: dict[str, tarfile.TarInfo]) -> None:
        self.manifest = manifest
        self._tar = tar
        self._members = members

    def opened(self, file: ListedFile) -> IO[bytes]:
        reader = self._tar.extractfile(self._members[file.path])
        assert reader is not None  # `checked` has read it
        return reader


@contextmanager
def checked(path: Path) -> Iterator[BackupFile]:
    """Read all of a backup. Raises `LogDamagedError` for what is not one, or not as it was made; `NotFoundError`."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield _checked(tar, path)
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LogDamagedError(f"{path} cannot be read as a backup: {why}") from None


def _checked(tar: tarfile.TarFile, path: Path) -> BackupFile:
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if not (member.isreg() or member.issym()):
            raise LogDamagedError(f"{path}: {member.name} is neither a file nor a link")
        if member.name in members:
            raise LogDamagedError(f"{path}: {member.name} is in it twice")
        members[member.name] = member
    last = members.pop(MANIFEST, None)
    if last is None:
        raise LogDamagedError(f"{path} has no {MANIFEST}: it is not a backup, or it was cut off")
    manifest = _manifest(tar, last, path)
    listed = {file.path: file for file in manifest.files}
    if len(listed) != len(manifest.files) or listed.keys() != members.keys():
        odd = sorted(listed.keys() ^ members.keys())
        raise LogDamagedError(f"{path}: {odd[0] if odd else MANIFEST} is not what the manifest says")
    if DATABASE not in listed or (CHECKPOINT in listed) != manifest.witnessed:
        raise LogDamagedError(f"{path} does not hold a log")
    for file in manifest.files:
        if not _belongs(file):
            raise LogDamagedError(f"{path}: {file.path} does not belong into a data folder")
        if not _is_whole(tar, members[file.path], file):
            raise LogDamagedError(f"{path}: {file.path} is not the file that was backed up")
    return BackupFile(tar, manifest, members)


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Manifest:
    reader = tar.extractfile(member) if member.isreg() else None
    try:
        if reader is None or member.size > MANIFEST_BYTES:
            raise LogDamagedError(f"{path}: {MANIFEST} is not a list")
        manifest = msgspec.json.decode(reader.read(), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogDamagedError(f"{path}: {MANIFEST}: {error}") from None
    if manifest.format != FORMAT:
        raise LogDamagedError(
            f"{path} has format {manifest.format}, this program knows {FORMAT}: use a newer sae-actor"
        )
    return manifest


def _belongs(file: ListedFile) -> bool:
    """Whether a member stays where a backup puts it: no other file of the folder, and none outside it."""
    if file.path in (DATABASE, CHECKPOINT):
        return file.link is None
    if not is_safe_path(file.path) or "/" not in file.path:
        return False
    if file.link is None:
        return file.path.partition("/")[0] in (*FOLDERS, *SAE_FOLDERS)
    # The links of the hub's layout, from a snapshot to a blob of the same repository.
    place, blob = _LINK.fullmatch(file.path), _BLOB.fullmatch(file.link)
    return place is not None and blob is not None and blob["up"].count("..") == place["inner"].count("/") + 1


def _is_whole(tar: tarfile.TarFile, member: tarfile.TarInfo, file: ListedFile) -> bool:
    if file.link is not None:
        return member.issym() and member.linkname == file.link
    if not member.isreg() or member.size != file.bytes:
        return False
    digest, reader = hashlib.sha256(), tar.extractfile(member)
    while reader is not None and (part := reader.read(CHUNK)):
        digest.update(part)
    return digest.hexdigest() == file.sha256
