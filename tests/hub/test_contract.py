"""What every `Hub` promises, run against the one in memory and the real one over a hub on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
from msgspec.structs import replace

from sae_actor.domain.effects import DeleteEffect, ImportEffect
from sae_actor.domain.refs import HookPoint, SaeFile
from sae_actor.domain.state import SaeLocation
from sae_actor.domain.weights import WeightsFile
from sae_actor.errors import (
    BadRequestError,
    ForbiddenError,
    NotFoundError,
    RepositoryNotFoundError,
    SAEAmbiguousError,
    SAEInvalidError,
)
from sae_actor.ports import Hub, NewVectors
from tests.fakes.hub import FakeHub, description
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files, write
from tests.hub.conftest import MakeHub, Told, download, located

pytestmark = pytest.mark.anyio


class World(Protocol):
    """A hub, and the hands to put things where it finds them."""

    hub: Hub
    roots: str
    """The import root."""

    def publish(self, repository_id: str, *paths: str) -> None:
        """One SAE at each path; all share the settings file."""

    def place(self, name: str) -> str:
        """A folder with an SAE under the import root."""

    def damage(self, location: SaeLocation, file: SaeFile) -> None:
        """Change the file on disk."""


class FakeWorld:
    def __init__(self) -> None:
        self.roots = "/saes"
        self.fake = FakeHub(import_roots=[self.roots])
        self.hub: Hub = self.fake

    def publish(self, repository_id: str, *paths: str) -> None:
        shared = SaeFile("cfg.json", 158, "d" * 64)
        for path in paths:
            self.fake.publish(repository_id, path, description(), shared=[shared])

    def place(self, name: str) -> str:
        self.fake.place(f"{self.roots}/{name}", description())
        return f"{self.roots}/{name}"

    def damage(self, _location: SaeLocation, file: SaeFile) -> None:
        self.fake.damage(file)


class RealWorld:
    def __init__(self, server: HubServer, make_hub: MakeHub, tmp_path: Path, folder: Path) -> None:
        self.hub: Hub = make_hub()
        self.server, self.folder = server, folder
        self.roots = str(tmp_path / "imports")

    def publish(self, repository_id: str, *paths: str) -> None:
        files: dict[str, bytes] = {}
        for seed, path in enumerate(paths):
            files |= sae_files("" if path == "root" else path, seed=seed)
        self.server.publish(repository_id, files)

    def place(self, name: str) -> str:
        return str(write(Path(self.roots) / name, sae_files()))

    def damage(self, location: SaeLocation, file: SaeFile) -> None:
        base = Path(location.path or "")
        if location.source == "hub":
            repository = self.folder / f"models--{(location.repository_id or '').replace('/', '--')}"
            base = repository / "snapshots" / (location.commit or "")
        content = bytearray((base / file.path).read_bytes())
        content[-1] ^= 1
        (base / file.path).resolve().write_bytes(content)


@pytest.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    wanted = ("server", "make_hub", "tmp_path", "folder")
    real = RealWorld(*(request.getfixturevalue(name) for name in wanted))
    yield real
    await real.hub.close()


def deletion(sae_id: str, location: SaeLocation, *kept: SaeLocation) -> DeleteEffect:
    return DeleteEffect(request_position=99, sae_id=sae_id, location=location, kept=kept)


async def test_a_download_is_described_digested_and_found_again(world: World) -> None:
    world.publish("org/saes", "layer.1", "layer.2")
    effect, told = download(path="layer.1"), Told()
    found = await world.hub.download(effect, told)
    assert (found.sae.format, found.sae.d_in, found.sae.d_sae) == ("sae_lens", 8, 32)
    assert found.commit is not None
    assert len(found.commit) == 40
    weights = next(file for file in found.files if file.path == "layer.1/sae_weights.safetensors")
    assert found.weights_sha256 == weights.sha256, "what sha256sum prints for the one file"
    assert found.weights_files == (WeightsFile("layer.1/sae_weights.safetensors", weights.sha256),)
    assert all(file.bytes > 0 and len(file.sha256) == 64 for file in found.files)
    assert {file.path for file in found.files} >= {"layer.1/cfg.json", "layer.1/sae_weights.safetensors"}
    assert told.messages
    assert {(each.kind, each.subject) for each in told.messages} == {("download", effect.sae_id)}
    assert await world.hub.locate(located(effect, found))


async def test_again_is_the_same(world: World) -> None:
    world.publish("org/saes", "layer.1")
    effect = download(path="layer.1")
    first = await world.hub.download(effect, Told())
    assert await world.hub.download(effect, Told()) == first


async def test_without_a_path_the_only_one_is_meant(world: World) -> None:
    world.publish("org/one", "root")
    world.publish("org/many", *(f"layer.{n}" for n in range(7)))
    effect = download("org/one")
    found = await world.hub.download(effect, Told())
    assert await world.hub.locate(located(effect, found))
    with pytest.raises(SAEAmbiguousError, match=r"7 .*layer\.0, layer\.1") as refused:
        await world.hub.download(download("org/many"), Told())
    assert refused.value.fields["matches"][:2] == ["layer.0", "layer.1"]


async def test_what_is_not_there_is_not_found(world: World) -> None:
    world.publish("org/saes", "layer.1")
    for effect in (download("org/none"), download(path="layer.9")):
        with pytest.raises(RepositoryNotFoundError):
            await world.hub.download(effect, Told())


async def test_a_changed_file_is_not_handed_out_until_it_is_fetched_again(world: World) -> None:
    world.publish("org/saes", "layer.1")
    effect = download(path="layer.1")
    found = await world.hub.download(effect, Told())
    location = located(effect, found)
    world.damage(location, found.files[-1])
    with pytest.raises(SAEInvalidError, match="again") as refused:
        await world.hub.locate(location)
    assert refused.value.fields["file"] == found.files[-1].path
    again = await world.hub.download(download(path="layer.1", at=2, force=True), Told())
    assert again == found
    assert await world.hub.locate(location)


async def test_delete_frees_what_no_other_needs(world: World) -> None:
    world.publish("org/saes", "layer.1", "layer.2")
    first, second = download(path="layer.1"), download(path="layer.2")
    one = located(first, await world.hub.download(first, Told()))
    two = located(second, await world.hub.download(second, Told()))
    shared = {file.sha256 for file in one.files} & {file.sha256 for file in two.files}
    assert shared
    own = sum(file.bytes for file in one.files if file.sha256 not in shared)
    assert await world.hub.delete(deletion(first.sae_id, one, two)) == own
    assert await world.hub.delete(deletion(first.sae_id, one, two)) == 0
    with pytest.raises(SAEInvalidError):
        await world.hub.locate(one)
    assert await world.hub.locate(two)
    assert await world.hub.delete(deletion(second.sae_id, two)) == sum(file.bytes for file in two.files)


async def test_an_import_is_described_and_never_deleted(world: World) -> None:
    folder = world.place("mine")
    resolved = await world.hub.resolve_import(folder)
    found = await world.hub.import_(ImportEffect(request_position=1, sae_id="mine", path=resolved))
    assert found.commit is None
    assert found.sae.d_sae == 32
    location = SaeLocation(source="import", repository_id=None, commit=None, path=resolved, files=found.files)
    assert await world.hub.locate(location)
    assert await world.hub.delete(deletion("mine", location)) == 0
    assert await world.hub.locate(location)
    world.damage(location, found.files[-1])
    with pytest.raises(SAEInvalidError):
        await world.hub.locate(location)


async def test_vectors_are_kept_found_again_and_deleted(world: World) -> None:
    point = HookPoint("resid_post", 2)
    wanted = NewVectors(name="sea", hook_point=point, rows=((1.0, 2.0), (3.0, -4.5)), names=("a", "b"), median_norm=3.5)
    sae_id = await world.hub.keep_vectors(wanted)
    assert await world.hub.keep_vectors(wanted) == sae_id
    assert await world.hub.keep_vectors(replace(wanted, rows=((1.0, 2.0),), names=())) != sae_id
    effect = ImportEffect(request_position=1, sae_id=sae_id, path=sae_id, source="vectors")
    found = await world.hub.import_(effect)
    assert await world.hub.import_(effect) == found
    assert sae_id == f"sea-{found.weights_sha256[:8]}"
    sae = found.sae
    assert (sae.architecture, sae.d_in, sae.d_sae, sae.hook_point) == ("vectors", 2, 2, point)
    assert (sae.names, sae.median_norm, sae.encodes) == (("a", "b"), 3.5, False)
    location = SaeLocation(source="vectors", repository_id=None, commit=None, path=sae_id, files=found.files)
    assert await world.hub.locate(location)
    assert await world.hub.delete(deletion(sae_id, location)) == sum(file.bytes for file in found.files)
    assert await world.hub.delete(deletion(sae_id, location)) == 0
    with pytest.raises(SAEInvalidError):
        await world.hub.locate(location)
    with pytest.raises(BadRequestError):
        await world.hub.keep_vectors(replace(wanted, rows=((1e39, 1.0),), names=()))


async def test_imports_stay_under_their_roots(world: World) -> None:
    world.place("mine")
    with pytest.raises(NotFoundError):
        await world.hub.resolve_import(f"{world.roots}/none")
    for outside in ("/etc", f"{world.roots}/../etc", f"{world.roots}x"):
        with pytest.raises(ForbiddenError):
            await world.hub.resolve_import(outside)


async def test_the_catalog_lists_before_anything_is_fetched(world: World) -> None:
    world.publish("org/saes", "layer.1", "layer.2")
    entries = await world.hub.catalog("org/saes")
    assert [entry.path for entry in entries] == ["layer.1", "layer.2"]
    assert all(entry.format == "sae_lens" and entry.file_size_bytes > 1000 for entry in entries)
    assert {(entry.d_in, entry.d_sae) for entry in entries} == {(8, 32)}
    with pytest.raises(RepositoryNotFoundError):
        await world.hub.catalog("org/none")


async def test_discarding_leaves_nothing_and_may_be_repeated(world: World) -> None:
    world.publish("org/saes", "layer.1")
    effect = download(path="layer.1")
    await world.hub.discard(effect)
    found = await world.hub.download(effect, Told())
    await world.hub.discard(download(path="layer.1", at=7))
    assert await world.hub.locate(located(effect, found))
