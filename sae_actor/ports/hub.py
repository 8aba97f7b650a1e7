"""SAEs on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from ..domain.effects import DeleteEffect, DownloadEffect, ImportEffect
from ..domain.refs import HookPoint
from ..domain.reports import HubSae
from ..domain.state import SaeLocation
from .progress import OnProgress


class CatalogEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One SAE in a repository, found from its file list and small config files alone."""

    path: str
    """The `path` of a Download; empty for an SAE at the root of the repository (`Download.path` null)."""
    format: str
    file_size_bytes: int
    d_in: int | None = None
    d_sae: int | None = None
    hook_name: str | None = None
    named_as: str | None = None
    repository_id: str | None = None
    revision: str | None = None
    """Where it is, if it was asked for by a name from elsewhere."""


class NamedSae(Struct, frozen=True, kw_only=True):
    """What a name from elsewhere stands for."""

    named_as: str
    repository_id: str
    path: str | None


class NewVectors(Struct, frozen=True, kw_only=True):
    """Directions that are to be kept."""

    name: str
    """Of letters, digits and . _ -"""
    hook_point: HookPoint
    rows: Sequence[Sequence[float]]
    """At least one, all as long."""
    names: tuple[str, ...] = ()
    """What each row is called."""
    median_norm: float | None = None
    """The median |x| at the hook point, if it is known."""


class Hub(Protocol):
    """SAEs on disk: download, import, find, delete. Raises only errors of `errors`."""

    async def download(self, effect: DownloadEffect, progress: OnProgress) -> HubSae:
        """Fetch exactly one SAE. Cancelling ends the child process before the await returns."""

    async def resolve_import(self, path: str, layer: int | None = None) -> str:
        """The resolved folder, if it lies under an import root; `ForbiddenError` / `NotFoundError` otherwise, and
        `SAEAmbiguousError` for vectors of several layers without `layer`."""

    async def import_digest(self, path: str, layer: int | None = None) -> str | None:
        """Digest of the weight files in a resolved folder as they lie there, of a pickle its own bytes; None if there
        is no SAE, which the import then reports."""

    async def keep_vectors(self, vectors: NewVectors) -> str:
        """Write vectors into the data folder; their id, the same for the same ones. An import registers them.

        `BadRequestError` for a number beyond float32.
        """

    async def import_(self, effect: ImportEffect) -> HubSae:
        """Describe a folder that is already on disk, and digest its files; nothing is copied."""

    async def locate(self, location: SaeLocation) -> str:
        """The folder (or file) to load the SAE from, its files checked against their sizes and digests.

        `SAEInvalidError` if one is missing or differs.
        """

    async def delete(self, effect: DeleteEffect) -> int:
        """Delete the files of a download; those of an import stay. The bytes freed; 0 if nothing was there."""

    async def discard(self, effect: DownloadEffect) -> None:
        """Remove the files that an unfinished, cancelled download left on disk."""

    async def catalog(self, repository_id: str, revision: str = "main") -> list[CatalogEntry]:
        """The SAEs of a repository, ordered by path; no weights are fetched.

        Cancelling ends the work for it; `NotReadyError` if too many others are waiting.
        """

    async def named(self, name: str) -> tuple[NamedSae, ...]:
        """What `saelens:RELEASE/SAE_ID` or `neuronpedia:MODEL/SOURCE` stands for: one SAE, or of a name that is only
        the beginning all of them.

        `NotFoundError`; `SAEUnsupportedError` where nothing is installed that knows such names.
        """

    async def disk_use(self) -> int:
        """Bytes of everything that was downloaded, finished or not."""

    async def close(self) -> None: ...
