"""Ids of SAEs; the files that an SAE's weights are read from, and their digest, which an intervention names.

The digest of one file is its own sha256, as `sha256sum` prints it; that of several is over their list. Older logs
hold the digest over the list for one file too, so both forms are known here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from .refs import SaeFile


class WeightsFile(Struct, frozen=True):
    """A file that holds weights, `path` as in `SaeFile`."""

    path: str
    sha256: str


WeightsFiles = tuple[WeightsFile, ...]


_NOT_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


def sae_id_of(repository_id: str, path: str | None, revision: str) -> str:
    """Id of a hub SAE, known before any network call."""
    return _slugged((repository_id, path or "root", revision))


def import_id_of(resolved_path: str, layer: int | None = None, digest: str | None = None) -> str:
    """Id of an SAE on disk: folder name, of vectors of one layer of a file that too, and digest of its weights.

    Without a digest, as in older logs and for a folder that holds no SAE, the path stands for it.
    """
    own = (resolved_path.rstrip("/").rpartition("/")[2], *(() if layer is None else (f"layer{layer}",)))
    return _slugged((*own, resolved_path), shown=len(own)) if digest is None else f"{_slug(own)}-{digest[:8]}"


def _slugged(parts: tuple[str, ...], shown: int | None = None) -> str:
    return f"{_slug(parts[:shown])}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:8]}"


def _slug(parts: tuple[str, ...]) -> str:
    return _NOT_SLUG.sub("-", "-".join(parts))[:110].strip("-.") or "sae"


def vectors_id_of(name: str, sha256: str) -> str:
    """Id of vectors that the service keeps, of their name and the digest of their file."""
    return f"{name}-{sha256[:8]}"


def weights_sha256(files: Iterable[tuple[str, str]]) -> str:
    """Digest of the weight files (path, sha256).

    Paths are relative to the SAE's own folder, so that an import and a download of the same files agree.
    """
    listed = sorted(files)
    return listed[0][1] if len(listed) == 1 else _over_list(listed)


def names(digest: str, files: Sequence[WeightsFile]) -> bool:
    """Whether `digest`, in either of its forms, is that of these files."""
    return bool(digest) and digest in _forms(files)


def of_record(files: Sequence[SaeFile], digest: str) -> WeightsFiles:
    """The weight files among all of an SAE's, for a record that does not name them; empty if `digest` matches none."""
    every = [WeightsFile(file.path, file.sha256) for file in files]
    several = [file for file in every if not file.path.endswith((".json", ".yaml"))]
    candidates = [*([file] for file in every), several]
    return next((tuple(each) for each in candidates if names(digest, each)), ())


def _forms(files: Sequence[WeightsFile]) -> Iterator[str]:
    if len(files) == 1:
        yield files[0].sha256
    # A list is of paths in the SAE's own folder, which may lie deep in a repository.
    depth = min((file.path.count("/") for file in files), default=-1)
    for above in range(depth + 1):
        yield _over_list(sorted((file.path.split("/", above)[-1], file.sha256) for file in files))


def _over_list(files: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(f"{path}\0{sha256}\n" for path, sha256 in files).encode()).hexdigest()
