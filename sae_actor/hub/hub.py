"""`HuggingFaceHub`: the port `Hub` over a folder in the hub's cache layout and child processes that fill it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from ..domain.effects import DeleteEffect, DownloadEffect, ImportEffect
from ..domain.state import SaeLocation
from ..domain.structs import filled
from ..errors import (
    ForbiddenError,
    GatedError,
    ModelLoadError,
    ModelNotFoundError,
    RepositoryNotFoundError,
    SAEDownloadError,
    SAEInvalidError,
    SAEUnsupportedError,
)
from ..formats.file_names import CONVERTIBLE
from ..models.files import is_hub_id, local_folder
from ..ports import CatalogEntry, HubSae, NamedSae, NewVectors, OnProgress, Progress
from ..ports.durability import disk_failure
from . import conversion, imports, kept_files, removal
from . import vectors as kept
from .catalogs import Listings
from .digests import KnownDigests
from .layout import DIGEST, Repository, blobs_bytes, is_safe_path, is_safe_revision
from .names import Names
from .process import run_job
from .protocol import CatalogJob, Done, DownloadJob, Fetched, ImportJob, Job, Listed, ModelJob, Patience
from .selection import target

A = TypeVar("A", Done, Listed, Fetched)

DOWNLOAD_HOSTS = ("huggingface.co", "hf.co")
"""Besides the hub's own origin, the hosts (and their subdomains) that its files may come from."""


class HuggingFaceHub:
    """The port `Hub`.

    folder          the data folder's hub/; made when first needed
    import_roots    folders under which an import may lie
    environment     HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, proxies…; None: that of this process
    quota_bytes     most that `folder` may hold
    reserve_bytes   free disk that a download leaves: the event log lives there too
    download_hosts  further hosts that a hub may redirect to
    max_downloads   child processes at a time; further downloads wait their turn
    """

    def __init__(
        self,
        folder: Path,
        *,
        import_roots: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        quota_bytes: int | None = None,
        reserve_bytes: int = 64 << 20,
        download_hosts: Sequence[str] = DOWNLOAD_HOSTS,
        max_downloads: int = 4,
        patience: Patience | None = None,
        silence_seconds: float = 300.0,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._import_roots = tuple(import_roots)
        self._environment = environment
        self.quota_bytes = quota_bytes
        self.reserve_bytes = reserve_bytes
        self.download_hosts = tuple(download_hosts)
        self._turns = anyio.Semaphore(max_downloads)
        self.patience = patience or Patience()
        self._silence_seconds = silence_seconds
        self._removals = anyio.Lock()
        self._known = KnownDigests()
        self._listings = Listings(self._catalog)
        self._names = Names(self.folder.parent / "neuronpedia")
        self._running: set[anyio.CancelScope] = set()
        self._closed = False

    async def download(self, effect: DownloadEffect, progress: OnProgress) -> HubSae:
        revision = _checked_revision(effect.revision)
        job = filled(DownloadJob, effect, self, parent=os.getpid(), root=str(self.folder), revision=revision)
        if self._turns.value == 0:
            progress(Progress(kind="download", subject=effect.sae_id, phase="waiting", reason="other_downloads"))
        async with self._turns:
            return self._placed(await self._run(job, Done, progress))

    def _placed(self, done: Done) -> HubSae:
        for placed in done.files:
            self._known.remember(Path(placed.at), placed.stamp, placed.file.sha256)
        return filled(HubSae, done, files=tuple(placed.file for placed in done.files))

    async def resolve_import(self, path: str, layer: int | None = None) -> str:
        return await to_thread.run_sync(imports.resolve, path, self._import_roots, layer)

    async def import_digest(self, path: str, layer: int | None = None) -> str | None:
        digest = partial(imports.digest_of, path, self._known, layer)
        return await to_thread.run_sync(digest, abandon_on_cancel=True)

    async def keep_vectors(self, vectors: NewVectors) -> str:
        return await to_thread.run_sync(kept.keep, kept.folder(self.folder), vectors)

    async def import_(self, effect: ImportEffect) -> HubSae:
        ours = effect.source == "vectors"
        path = str(kept.folder(self.folder) / effect.path) if ours else effect.path
        try:
            # Reading only: a cancelled caller need not wait for the digest of a large file.
            register = partial(imports.register, path, self._known, effect.layer)
            return await to_thread.run_sync(register, abandon_on_cancel=True)
        except SAEUnsupportedError as error:
            if error.fields.get("check") != "pickle" or not str(error.fields.get("file")).endswith(CONVERTIBLE):
                raise
        job = filled(ImportJob, effect, parent=os.getpid(), root=str(self.folder))
        before = conversion.folder(self.folder, effect.sae_id).exists()
        try:
            return self._placed(await self._run(job, Done))
        except BaseException:
            if not before:  # what was converted of the same weights in another folder stays
                with anyio.CancelScope(shield=True):
                    await self._removing(partial(conversion.remove, self.folder, effect.sae_id))
            raise

    async def locate(self, location: SaeLocation) -> str:
        return await to_thread.run_sync(self._locate, location, abandon_on_cancel=True)

    async def delete(self, effect: DeleteEffect) -> int:
        return await self._removing(partial(removal.delete, self.folder, effect))

    async def discard(self, effect: DownloadEffect) -> None:
        await self._removing(partial(removal.discard, self.folder, effect))

    async def named(self, name: str) -> tuple[NamedSae, ...]:
        return await to_thread.run_sync(self._names.of, name)

    async def catalog(self, repository_id: str, revision: str = "main") -> list[CatalogEntry]:
        return await self._listings.of(repository_id, _checked_revision(revision))

    async def _catalog(self, repository_id: str, revision: str) -> list[CatalogEntry]:
        job = filled(CatalogJob, self, parent=os.getpid(), repository_id=repository_id, revision=revision)
        return list((await self._run(job, Listed)).entries)

    async def fetch_model(
        self,
        model: str,
        revision: str,
        progress: OnProgress,
        *,
        weights: bool = True,
        quantization: str | None = None,
        device: str = "auto",
    ) -> None:
        """Bring the model's files into the user's hub cache, unless they are there or `model` is a folder; without
        `weights` its settings alone. `quantization` and `device`, as `LoadModel` has them: weights that could not be
        loaded so are not fetched.

        Cancelled, it ends immediately with everything it started. Raises `ModelNotFoundError`, `ModelLoadError`,
        `DiskFullError`. The engine refuses what is not a hub id.
        """
        if local_folder(model) is not None or not is_hub_id(model):
            return

        try:
            job = filled(
                ModelJob,
                self,
                parent=os.getpid(),
                model=model,
                revision=_checked_revision(revision),
                weights=weights,
                quantization=quantization,
                device=device,
            )
            await self._run(job, Fetched, progress)
        except RepositoryNotFoundError as error:
            raise ModelNotFoundError(
                f"the hub has no {model} at {revision}, or it is private",
                model=model,
                reason=error.fields.get("reason"),
            ) from None
        except (SAEDownloadError, GatedError, ForbiddenError) as error:
            raise ModelLoadError(f"{model}: {error.detail}", **{**error.fields, "model": model}) from None

    async def sweep(self, commits: Mapping[str, str | None]) -> int:
        """Before the first download of this process: remove what killed processes left, see `removal.sweep`.

        `commits`: every hub SAE on record and the commit whose files it has (None: none yet). The bytes freed.
        """
        freed = await self._removing(partial(removal.sweep, self.folder, dict(commits)))
        return freed + await self._removing(partial(kept.sweep, kept.folder(self.folder)))

    async def disk_use(self) -> int:
        return await to_thread.run_sync(blobs_bytes, self.folder)

    async def close(self) -> None:
        """End every child process; their calls raise `SAEDownloadError` (`stopped`)."""
        self._closed = True
        for scope in tuple(self._running):
            scope.cancel()

    async def _run(self, job: Job, wanted: type[A], heard: OnProgress = lambda _: None) -> A:
        with anyio.CancelScope() as scope:
            if self._closed:
                scope.cancel()
            self._running.add(scope)
            try:
                environment = os.environ if self._environment is None else self._environment
                answer = await run_job(job, environment, heard, self._silence_seconds)
            finally:
                self._running.discard(scope)
            if isinstance(answer, wanted):
                return answer
            raise SAEDownloadError("The process gave an unexpected answer", reason="process")
        raise SAEDownloadError("The service is stopping", reason="stopped")

    async def _removing(self, remove: Callable[[], int]) -> int:
        """Run one removal at a time, to its end: what one keeps, another must not take meanwhile."""
        async with self._removals:
            try:
                return await to_thread.run_sync(remove)
            except OSError as error:
                raise disk_failure(error, "Files cannot be removed") from None

    def _locate(self, location: SaeLocation) -> str:
        if location.source == "vectors":
            base, again = kept.folder(self.folder) / (location.path or ""), "delete the record and send it again"
        elif location.source == "import":
            base, again = Path(location.path or ""), "delete the record and import it again"
            if not base.is_dir():  # a restore may have brought it
                base = kept_files.import_folder(self.folder, location)
        elif location.repository_id is None or not DIGEST.fullmatch(location.commit or ""):
            raise SAEInvalidError("The SAE has no files", check="files")
        else:
            base = Repository.of(self.folder, location.repository_id).snapshot(location.commit or "")
            again = "download it again with force"
        converted = conversion.loaded_files(self.folder, location) if location.converted else []
        for path, file in converted or [(base / file.path, file) for file in location.files]:
            fields = {"file": file.path, "repository_id": location.repository_id}
            try:
                if not is_safe_path(file.path):
                    raise FileNotFoundError
                stamp, sha256 = self._known.of(path)
            except OSError:
                raise SAEInvalidError(f"{file.path} is gone: {again}", check="missing", **fields) from None
            if stamp.bytes != file.bytes or sha256 != file.sha256:
                raise SAEInvalidError(f"{file.path} has changed: {again}", check="sha256", **fields)
        if converted:
            return str(converted[0][0])
        if location.source != "hub":
            return str(base)
        return str(base / target([file.path for file in location.files], location.path))


def _checked_revision(revision: str) -> str:
    if not is_safe_revision(revision):
        raise SAEDownloadError("The revision is not the name of a branch, tag or commit", reason="bad_revision")
    return revision
