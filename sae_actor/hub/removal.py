"""Removal of files: delete an SAE, discard a cancelled download, sweep up after killed processes.

Every operation can be cut off at any point and run again: a blob goes before the link that leads to it,
and the claims go last. Nothing outside the repository's folder is ever touched.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..domain.effects import DeleteEffect, DownloadEffect
from ..domain.state import SaeLocation
from . import claims as claimed
from . import conversion, vectors
from .claims import Claim, Claims
from .kept_files import remove_brought
from .layout import DIGEST, Repository, is_safe_path, remove_empty

_LEFT_BY_LIBRARY = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\.[0-9a-f]{8}\.incomplete|tmp_[0-9a-f-]{36}")
"""Names of unfinished files of the hub library: unique to a process, so no one continues them."""
_TEMPORARY = re.compile(r".+\.(\d{1,9})\.tmp")
"""Names that are renamed as soon as they are written: their writer's process id is in them."""


@dataclass
class _Kept:
    """What other SAEs of the repository still need."""

    blobs: set[str] = field(default_factory=set)
    links: set[tuple[str, str]] = field(default_factory=set)
    converted: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, repository: Repository, *, without: str | None = None) -> _Kept:
        """What all SAEs but one claim."""
        kept = cls()
        for claims in claimed.every(repository):
            if claims.sae_id != without:
                kept.add(claims)
        return kept

    def add(self, claims: Claims) -> None:
        self.converted.update(claim.converted for claim in claims.claims if claim.converted is not None)
        for commit, file in claims.files:
            self.blobs.add(file.blob)
            self.links.add((commit, file.path))

    def locate(self, repository: Repository, location: SaeLocation) -> None:
        if (key := conversion.key_at(location)) is not None:
            self.converted.add(key)
        for file in location.files:
            link = (location.commit or "", file.path)
            self.links.add(link)
            if (blob := _blob_of(repository, *link)) is not None:
                self.blobs.add(blob)


def delete(root: Path, effect: DeleteEffect) -> int:
    """Delete the SAE's files that no other SAE needs; the bytes that became free.

    The user's folder of an import is not touched: only what was made of its pickle, or brought by a restore, goes. What
    is gone already frees nothing, so running it again converges.
    """
    location = effect.location
    if location.source == "vectors":
        return vectors.remove(vectors.folder(root), effect.sae_id)
    if location.source == "import" or location.repository_id is None:
        return conversion.remove(root, effect.sae_id) + remove_brought(root, location)
    repository = Repository.of(root, location.repository_id)
    if not repository.folder.is_dir():
        return 0
    own = claimed.read(repository, effect.sae_id)
    kept = _Kept.of(repository, without=effect.sae_id)
    for other in effect.kept:
        if other.source == "hub" and other.repository_id == location.repository_id:
            kept.locate(repository, other)
    links = {(location.commit or "", file.path): _blob_of(repository, location.commit or "", file.path)
             for file in location.files if location.commit is not None}  # fmt: skip
    if own is not None:
        links.update({(commit, file.path): file.blob for commit, file in own.files})
    converted = {conversion.key_at(location)} | {claim.converted for claim in (own.claims if own is not None else ())}
    freed = _remove(repository, links, kept) + _remove_converted(root, converted, kept)
    if own is not None:
        claimed.write(repository, own.without(own.claims))
    _tidy(root, repository)
    return freed


def discard(root: Path, effect: DownloadEffect) -> int:
    """Remove what the cancelled request left, down to what the SAE had before it; the bytes that became free."""
    repository = Repository.of(root, effect.repository_id)
    own = claimed.read(repository, effect.sae_id)
    if own is None:
        _tidy(root, repository)
        return 0
    at = effect.request_position
    gone = [c for c in own.claims if c.request_position == at or (c.request_position < at and not c.complete)]
    return _drop(root, repository, own, gone)


def withdraw(root: Path, repository: Repository, sae_id: str, claim: Claim) -> int:
    """Take out what one request has brought, its files being of no use; the bytes that became free."""
    own = claimed.read(repository, sae_id)
    mine = None if own is None else own.of(claim.request_position)
    return 0 if own is None or mine is None else _drop(root, repository, own, [mine])


def sweep(root: Path, commits: Mapping[str, str | None]) -> int:
    """Remove what no SAE will use again; returns the bytes freed. Run when no download runs.

    `commits` names the SAEs on record and the commit whose files each has (None: none yet). Removed are unfinished
    files that no claim names, those claimed for an SAE that is not on record, complete claims that a newer commit
    has replaced, temporary files, and blobs that nothing leads to. Complete SAEs that are not on record stay: a
    new log over an old folder finds them again.
    """
    freed = 0
    converted: set[str] = set()
    for folder in sorted(root.glob("models--*")):
        repository = Repository(folder)
        for own in claimed.every(repository):
            gone = [c for c in own.claims if not _wanted(c, own, commits)]
            freed += _drop(root, repository, own, gone)
        freed += _sweep_blobs(repository)
        _tidy(root, repository, quiet=True)
        converted |= _Kept.of(repository).converted
    return freed + conversion.sweep(root, converted)


def _wanted(claim: Claim, own: Claims, commits: Mapping[str, str | None]) -> bool:
    if own.sae_id not in commits:
        return claim.complete
    return claim.commit == commits[own.sae_id] or claim is own.claims[-1]


def _drop(root: Path, repository: Repository, own: Claims, gone: Iterable[Claim]) -> int:
    gone = list(gone)
    if not gone:
        return 0
    left = own.without(gone)
    kept = _Kept.of(repository, without=own.sae_id)
    kept.add(left)
    links: dict[tuple[str, str], str | None] = {
        (claim.commit, file.path): file.blob for claim in gone for file in claim.files
    }
    keys = {claim.converted for claim in gone}
    freed = _remove(repository, links, kept) + _remove_converted(root, keys, kept) + _remove_begun(root, keys)
    claimed.write(repository, left)
    _tidy(root, repository)
    return freed


def _remove(repository: Repository, links: Mapping[tuple[str, str], str | None], kept: _Kept) -> int:
    freed = 0
    for (commit, path), blob in links.items():
        if blob is not None and DIGEST.fullmatch(blob) and blob not in kept.blobs:
            freed += _unlink(repository.blob(blob)) + _unlink_unheld(repository.partial(blob))
        if DIGEST.fullmatch(commit) and is_safe_path(path) and (commit, path) not in kept.links:
            link = repository.link(commit, path)
            if link.is_symlink():
                link.unlink()
            remove_empty(link.parent, repository.folder)
    return freed


def _remove_converted(root: Path, keys: Iterable[str | None], kept: _Kept) -> int:
    return sum(conversion.remove(root, key) for key in keys if key is not None and key not in kept.converted)


def _remove_begun(root: Path, keys: Iterable[str | None]) -> int:
    """What a killed process was converting: no other will go on with it, and it may be as large as the SAE."""
    begun = [each for key in keys if key is not None for each in conversion.begun(root, key)]
    return sum(conversion.remove(root, place.name) for place, writer in begun if not _is_running(writer))


def _sweep_blobs(repository: Repository) -> int:
    claims = _Kept.of(repository)
    linked = {
        os.path.basename(os.readlink(link)) for link in repository.folder.glob("snapshots/**/*") if link.is_symlink()
    }
    freed = 0
    for file in sorted(repository.blobs.glob("*")):
        digest = file.name.removesuffix(".incomplete")
        if _LEFT_BY_LIBRARY.fullmatch(file.name) or (file.name != digest and digest not in claims.blobs):
            freed += _unlink_unheld(file)
        elif file.name == digest and digest not in claims.blobs and digest not in linked:
            freed += _unlink(file)
    return freed


def _tidy(root: Path, repository: Repository, *, quiet: bool = False) -> None:
    """Remove what a killed process was about to rename, refs to commits that are gone, folders that became empty.

    `quiet`: no download runs, so nothing is about to be renamed, whatever process has the writer's id now.
    """
    for pattern in ("refs/**/*.tmp", "snapshots/**/.*.tmp", ".claims/*.tmp"):
        for left in list(repository.folder.glob(pattern)):
            writer = _TEMPORARY.fullmatch(left.name)
            if writer is not None and (quiet or not _is_running(int(writer[1]))):
                left.unlink(missing_ok=True)
                remove_empty(left.parent, repository.folder)
    for ref in list(repository.folder.glob("refs/**/*")):
        if ref.is_file() and not repository.snapshot(ref.read_text().strip() or "-").is_dir():
            ref.unlink(missing_ok=True)
            remove_empty(ref.parent, repository.folder)
    for folder in (repository.blobs, repository.folder / "snapshots", repository.folder / "refs", repository.claims):
        remove_empty(folder, root)


def _blob_of(repository: Repository, commit: str, path: str) -> str | None:
    """Name of the blob a snapshot's link leads to; None if there is no such link."""
    if not DIGEST.fullmatch(commit) or not is_safe_path(path):
        return None
    try:
        target = os.readlink(repository.link(commit, path))
    except OSError:
        return None
    name = os.path.basename(target)
    return name if DIGEST.fullmatch(name) else None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _unlink(path: Path) -> int:
    """Remove a file; the bytes that became free (none while it has another name)."""
    try:
        found = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size if found.st_nlink == 1 else 0


def _unlink_unheld(partial: Path) -> int:
    """Remove an unfinished file, unless a running download holds it."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _unlink(partial)
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)
