"""Which files of a repository's folder an SAE needs: one small JSON file per SAE, next to the hub's layout.

A claim is written before the first byte is fetched. So a later process can tell a partial file to be continued from
one to be removed, and a shared blob from an owned one. The event log says which SAEs exist; claims only protect their
files from removal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from ..domain.refs import SaeId
from .layout import Repository, remove_empty, write_durably


class ClaimedFile(Struct, frozen=True):
    path: str
    blob: str
    bytes: int


class Claim(Struct, frozen=True, kw_only=True):
    """The files that one download request of an SAE wants, or has."""

    request_position: int
    commit: str
    files: tuple[ClaimedFile, ...]
    complete: bool = False
    fetched: tuple[str, ...] = ()
    """Blobs that this request has fetched: a forced download that was cut off does not fetch them again."""
    converted: str | None = None
    """Key of what was made of a pickle among the files, see `conversion`."""


class Claims(Struct, frozen=True, kw_only=True):
    """All claims of one SAE, oldest first: what it has, and what a newer download would replace it with."""

    sae_id: str
    revision: str
    claims: tuple[Claim, ...] = ()

    @property
    def files(self) -> Iterator[tuple[str, ClaimedFile]]:
        """(commit, file) of every claim."""
        for claim in self.claims:
            for file in claim.files:
                yield claim.commit, file

    def of(self, request_position: int) -> Claim | None:
        return next((c for c in self.claims if c.request_position == request_position), None)

    def put(self, claim: Claim) -> Claims:
        others = tuple(c for c in self.claims if c.request_position != claim.request_position)
        return msgspec.structs.replace(self, claims=(*others, claim))

    def without(self, claims: Iterable[Claim]) -> Claims:
        gone = {c.request_position for c in claims}
        return msgspec.structs.replace(self, claims=tuple(c for c in self.claims if c.request_position not in gone))


_DECODER = msgspec.json.Decoder(Claims)
_SAE_ID = msgspec.json.Decoder(SaeId)


def _path(repository: Repository, sae_id: str) -> Path:
    return repository.claims / f"{msgspec.convert(sae_id, SaeId)}.json"


def read(repository: Repository, sae_id: str) -> Claims | None:
    """The claims of one SAE; None if there are none. An unreadable file claims nothing and is removed."""
    path = _path(repository, sae_id)
    try:
        return _DECODER.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        path.unlink(missing_ok=True)
        return None


def write(repository: Repository, claims: Claims) -> None:
    """Store the claims durably; without any, remove their file."""
    path = _path(repository, claims.sae_id)
    if claims.claims:
        write_durably(path, msgspec.json.encode(claims))
    else:
        path.unlink(missing_ok=True)
        remove_empty(repository.claims, repository.folder)


def every(repository: Repository) -> list[Claims]:
    """The claims of all SAEs of the repository."""
    try:
        names = sorted(os.listdir(repository.claims))
    except FileNotFoundError:
        return []
    found = (read(repository, name.removesuffix(".json")) for name in names if name.endswith(".json"))
    return [claims for claims in found if claims is not None]
