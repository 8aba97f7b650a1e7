"""`FakeHub`: the port `Hub` in memory, for the tests of everything above it. No disk, no network, no torch.

    hub = FakeHub()
    hub.publish("org/saes", "layer.1", description())      # what a repository holds
    hub.place("/saes/demo", description())                 # what lies under the import root "/saes"
    hub.fail("download", SAEDownloadError("cut"), times=2) # the next two calls raise
    gate = hub.hold("download")                            # every call waits until gate.set()
    hub.delays["locate"] = 0.05                            # seconds before every call

`hub.calls` holds (operation, argument) in the order of arrival, `hub.cancelled` those that were cancelled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from sae_actor.domain.effects import DeleteEffect, DownloadEffect, ImportEffect
from sae_actor.domain.refs import HookPoint, SaeDescription, SaeFile
from sae_actor.domain.state import SaeLocation
from sae_actor.domain.weights import WeightsFile, import_id_of, vectors_id_of, weights_sha256
from sae_actor.errors import (
    BadRequestError,
    ForbiddenError,
    NotFoundError,
    RepositoryNotFoundError,
    SAEAmbiguousError,
    SAEInvalidError,
)
from sae_actor.ports import CatalogEntry, HubSae, NamedSae, NewVectors, OnProgress, Progress


def description(d_in: int = 8, d_sae: int = 32, layer: int = 1, **changes: Any) -> SaeDescription:
    """A small standard SAE at `resid_post.layer`; `changes` replace further fields."""
    sae = SaeDescription(
        format="sae_lens",
        architecture="standard",
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_in,
        dtype="float32",
        trained_on="tiny",
        trained_layer=layer,
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_point=HookPoint("resid_post", layer),
    )
    return msgspec.structs.replace(sae, **changes)


def imported_id(folder: str) -> str:
    """The id of what `FakeHub.place` puts into a folder."""
    return import_id_of(folder, digest=_sha(folder, "weights"))


def _sha(name: str, part: str) -> str:
    return hashlib.sha256(f"{name}/{part}".encode()).hexdigest()


class FakeSae(Struct, frozen=True):
    """One SAE of a fake repository or folder."""

    sae: SaeDescription
    files: tuple[SaeFile, ...]


class FakeHub:
    """The port `Hub` over dictionaries; `folder` is what `locate` answers for everything that is on its disk."""

    def __init__(
        self,
        folder: str = "/fake/sae",
        *,
        import_roots: Sequence[str] = ("/saes",),
        default: SaeDescription | None = None,
    ) -> None:
        self.folder = folder
        self.import_roots = tuple(import_roots)
        self.default = default
        """When set, every unknown repository holds one SAE like this, at whatever path is asked."""
        self.repositories: dict[str, dict[str, FakeSae]] = {}
        self.places: dict[str, FakeSae] = {}
        self.vectors: dict[str, FakeSae] = {}
        """Those that are kept, by id."""
        self.names: list[NamedSae] = []
        self.disk: dict[str, dict[str, int]] = {}
        """Repository → sha256 of a stored file → its bytes."""
        self.partials: set[tuple[str, str | None, str]] = set()
        """(repository, path, revision) of the downloads that left something unfinished."""
        self.damaged: set[str] = set()
        """sha256 of the files that fail the check of `locate`."""
        self.delays: dict[str, float] = {}
        self.calls: list[tuple[str, Any]] = []
        self.cancelled: list[tuple[str, Any]] = []
        self.closed = False
        self._gates: dict[str, anyio.Event] = {}
        self._failures: dict[str, list[Exception]] = {}

    # — the script —

    def publish(
        self,
        repository_id: str,
        path: str = "root",
        sae: SaeDescription | None = None,
        *,
        shared: Sequence[SaeFile] = (),
    ) -> FakeSae:
        """Put one SAE into a repository; `shared` are further files that it has in common with others."""
        sae = sae or description()
        prefix = "" if path == "root" else f"{path}/"
        files = (*_files(prefix, f"{repository_id}:{path}", sae), *shared)
        entry = self.repositories.setdefault(repository_id, {})[path] = FakeSae(sae, files)
        return entry

    def place(self, folder: str, sae: SaeDescription | None = None) -> FakeSae:
        """Put one SAE on the fake disk, to be imported."""
        sae = sae or description()
        entry = self.places[folder] = FakeSae(sae, _files("", folder, sae))
        return entry

    def fail(self, operation: str, error: Exception, times: int = 1) -> None:
        """The next `times` calls of `operation` raise `error`, after their delay and gate."""
        self._failures.setdefault(operation, []).extend([error] * times)

    def hold(self, operation: str) -> anyio.Event:
        """Every call of `operation` waits until the returned event is set."""
        gate = self._gates[operation] = anyio.Event()
        return gate

    def damage(self, file: SaeFile) -> None:
        """From now on `locate` finds this file changed."""
        self.damaged.add(file.sha256)

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)

    # — the port —

    async def download(self, effect: DownloadEffect, progress: OnProgress) -> HubSae:
        partial = (effect.repository_id, effect.path, effect.revision)
        self.partials.add(partial)
        await self._step("download", effect)
        entry = self._find(effect.repository_id, effect.path)
        total = sum(file.bytes for file in entry.files)
        for done in (0, total // 2, total):
            progress(Progress(kind="download", subject=effect.sae_id, phase="body", done=done, total=total))
        self.disk.setdefault(effect.repository_id, {}).update({file.sha256: file.bytes for file in entry.files})
        self.damaged.difference_update(file.sha256 for file in entry.files)
        self.partials.discard(partial)
        commit = hashlib.sha1(f"{effect.repository_id}@{effect.revision}".encode()).hexdigest()
        return HubSae(commit=commit, files=entry.files, sae=entry.sae, **_weights(entry))

    async def resolve_import(self, path: str, layer: int | None = None) -> str:
        await self._step("resolve_import", path)
        resolved = str(PurePosixPath(path))
        if ".." in PurePosixPath(path).parts or not any(
            resolved == root or resolved.startswith(f"{root}/") for root in self.import_roots
        ):
            raise ForbiddenError("The folder is not under an import root", path=path)
        if resolved not in self.places:
            raise NotFoundError("There is no such folder", path=path)
        return resolved

    async def import_digest(self, path: str, layer: int | None = None) -> str | None:
        await self._step("import_digest", (path, layer))
        entry = self.places.get(path)
        return None if entry is None else str(_weights(entry)["weights_sha256"])

    async def keep_vectors(self, vectors: NewVectors) -> str:
        await self._step("keep_vectors", vectors)
        if any(abs(value) > 3e38 for row in vectors.rows for value in row):
            raise BadRequestError("A number is beyond float32", param="rows")
        n, d, point = len(vectors.rows), len(vectors.rows[0]), vectors.hook_point
        sha256 = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(vectors, name=""))).hexdigest()
        sae_id = vectors_id_of(vectors.name, sha256)
        made = {"format": "vectors", "architecture": "vectors", "trained_on": None, "hook_name": str(point)}
        said = {"hook_point": point, "names": vectors.names, "median_norm": vectors.median_norm}
        sae = description(d, n, point.layer, **made, **said)
        self.vectors[sae_id] = FakeSae(sae, (SaeFile("vectors.safetensors", 4 * n * d, sha256),))
        return sae_id

    async def disk_use(self) -> int:
        return sum(sum(stored.values()) for stored in self.disk.values())

    async def import_(self, effect: ImportEffect) -> HubSae:
        await self._step("import_", effect)
        entry = (self.vectors if effect.source == "vectors" else self.places).get(effect.path)
        if entry is None:
            raise NotFoundError("There is no such folder", path=effect.path)
        return HubSae(commit=None, files=entry.files, sae=entry.sae, **_weights(entry))

    async def locate(self, location: SaeLocation) -> str:
        await self._step("locate", location)
        stored = self.disk.get(location.repository_id or "", {})
        if location.source != "hub":
            entry = (self.vectors if location.source == "vectors" else self.places).get(location.path or "")
            stored = {} if entry is None else {file.sha256: file.bytes for file in entry.files}
        for file in location.files:
            if file.sha256 not in stored:
                raise SAEInvalidError("A file of the SAE is gone; download it again", check="missing", file=file.path)
            if file.sha256 in self.damaged:
                raise SAEInvalidError(
                    "A file of the SAE has changed; download it again", check="sha256", file=file.path
                )
        return self.folder

    async def delete(self, effect: DeleteEffect) -> int:
        await self._step("delete", effect)
        location = effect.location
        if location.source == "import":
            return 0
        if location.source == "vectors":
            gone = self.vectors.pop(effect.sae_id, None)
            return 0 if gone is None else sum(file.bytes for file in gone.files)
        stored = self.disk.get(location.repository_id or "", {})
        kept = {file.sha256 for k in effect.kept if k.repository_id == location.repository_id for file in k.files}
        unused = {file.sha256 for file in location.files} - kept
        freed = sum(stored.pop(sha256, 0) for sha256 in unused)
        if not stored:
            self.disk.pop(location.repository_id or "", None)
        return freed

    async def discard(self, effect: DownloadEffect) -> None:
        await self._step("discard", effect)
        self.partials.discard((effect.repository_id, effect.path, effect.revision))

    async def named(self, name: str) -> tuple[NamedSae, ...]:
        await self._step("named", name)
        found = [each for each in self.names if name in (each.named_as, each.named_as.rpartition("/")[0])]
        if not found:
            raise NotFoundError(f"there is no {name}", name=name)
        return tuple(found)

    async def catalog(self, repository_id: str, revision: str = "main") -> list[CatalogEntry]:
        await self._step("catalog", (repository_id, revision))
        if repository_id not in self.repositories:
            raise RepositoryNotFoundError("No such repository", repository_id=repository_id)
        return [
            CatalogEntry(
                path="" if path == "root" else path,
                format=entry.sae.format,
                file_size_bytes=sum(file.bytes for file in entry.files),
                d_in=entry.sae.d_in,
                d_sae=entry.sae.d_sae,
                hook_name=entry.sae.hook_name,
            )
            for path, entry in sorted(self.repositories[repository_id].items())
        ]

    async def close(self) -> None:
        self.closed = True

    # — inside —

    async def _step(self, operation: str, argument: object) -> None:
        self.calls.append((operation, argument))
        try:
            await anyio.sleep(self.delays.get(operation, 0))
            if operation in self._gates:
                await self._gates[operation].wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append((operation, argument))
            raise
        if self._failures.get(operation):
            raise self._failures[operation].pop(0)

    def _find(self, repository_id: str, path: str | None) -> FakeSae:
        if repository_id not in self.repositories and self.default is not None:
            self.publish(repository_id, path or "root", self.default)
        saes = self.repositories.get(repository_id)
        if saes is None:
            raise RepositoryNotFoundError("No such repository", repository_id=repository_id)
        if path is None and len(saes) > 1:
            first = ", ".join(sorted(saes)[:5])
            raise SAEAmbiguousError(f"The repository holds {len(saes)} SAEs: {first}", matches=sorted(saes)[:5])
        key = next(iter(saes)) if path is None else path
        if key not in saes:
            raise RepositoryNotFoundError("There is no SAE at that path", repository_id=repository_id, path=path)
        return saes[key]


def _files(prefix: str, name: str, sae: SaeDescription) -> tuple[SaeFile, ...]:
    weights = SaeFile(f"{prefix}sae_weights.safetensors", 4 * sae.parameters, _sha(name, "weights"))
    return SaeFile(f"{prefix}cfg.json", 500, _sha(name, "cfg")), weights


def _weights(entry: FakeSae) -> dict[str, Any]:
    weights = [file for file in entry.files if not file.path.endswith(".json")]
    return {
        "weights_sha256": weights_sha256((file.path, file.sha256) for file in weights),
        "weights_files": tuple(WeightsFile(file.path, file.sha256) for file in weights),
    }
