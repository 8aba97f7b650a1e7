"""Imports: where they may lie, what is digested, what a later look notices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sae_actor.domain.effects import ImportEffect
from sae_actor.domain.refs import HookPoint
from sae_actor.domain.state import SaeLocation
from sae_actor.errors import ForbiddenError, NotFoundError, SAEAmbiguousError, SAEInUseError, SAEInvalidError
from sae_actor.hub import HuggingFaceHub
from sae_actor.hub import digests as digesting
from sae_actor.ports import NewVectors
from tests.fakes.hub_server import HubServer
from tests.formats.vector_files import write_gguf
from tests.hub.build import sae_files, write
from tests.hub.conftest import MakeHub, Told, download

pytestmark = pytest.mark.anyio


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    return tmp_path / "imports"


def effect(path: str) -> ImportEffect:
    return ImportEffect(request_position=1, sae_id="mine", path=path)


async def placed(hub: HuggingFaceHub, folder: Path) -> SaeLocation:
    path = await hub.resolve_import(str(folder))
    found = await hub.import_(effect(path))
    return SaeLocation(source="import", repository_id=None, commit=None, path=path, files=found.files)


async def test_links_are_followed_before_the_root_is_asked(hub: HuggingFaceHub, roots: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", sae_files())
    inside = write(roots / "inside", sae_files())
    (roots / "out").symlink_to(outside)
    (roots / "in").symlink_to(inside)
    (tmp_path / "detour").symlink_to(inside)
    assert await hub.resolve_import(str(roots / "in")) == str(inside)
    assert await hub.resolve_import(str(tmp_path / "detour")) == str(inside)
    for path in (roots / "out", outside, roots / "in" / ".." / ".." / "outside"):
        with pytest.raises(ForbiddenError):
            await hub.resolve_import(str(path))


@pytest.mark.parametrize("path", ["imports/inside", "", "a\0b", "/", "/proc/self/root/etc"])
async def test_what_is_no_path_under_a_root_is_forbidden(hub: HuggingFaceHub, path: str) -> None:
    with pytest.raises(ForbiddenError):
        await hub.resolve_import(path)


async def test_a_root_may_be_a_link_itself(make_hub: MakeHub, tmp_path: Path) -> None:
    write(tmp_path / "disk" / "one", sae_files())
    (tmp_path / "saes").symlink_to(tmp_path / "disk")
    hub = make_hub(import_roots=[tmp_path / "saes"])
    assert await hub.resolve_import(str(tmp_path / "saes" / "one")) == str(tmp_path / "disk" / "one")


async def test_no_root_means_no_import(make_hub: MakeHub, roots: Path) -> None:
    write(roots / "one", sae_files())
    with pytest.raises(ForbiddenError):
        await make_hub(import_roots=[]).resolve_import(str(roots / "one"))


async def test_a_file_is_no_folder(hub: HuggingFaceHub, roots: Path) -> None:
    write(roots / "one", sae_files())
    with pytest.raises(NotFoundError):
        await hub.resolve_import(str(roots / "one" / "cfg.json"))


async def test_a_download_and_an_import_of_the_same_files_agree(
    server: HubServer, hub: HuggingFaceHub, roots: Path
) -> None:
    server.publish("org/saes", sae_files("deep/down"))
    write(roots / "one", {**sae_files(), "notes.md": b"words", "sparsity.safetensors": b"other"})
    fetched = await hub.download(download(path="deep/down"), Told())
    imported = await hub.import_(effect(str(roots / "one")))
    assert imported.sae == fetched.sae
    assert imported.weights_sha256 == fetched.weights_sha256
    assert [file.path for file in imported.weights_files] == ["sae_weights.safetensors"]
    assert [file.path for file in fetched.weights_files] == ["deep/down/sae_weights.safetensors"]
    assert {file.sha256 for file in imported.weights_files} == {imported.weights_sha256}
    assert [file.sha256 for file in imported.files] == [file.sha256 for file in fetched.files]
    assert {file.path for file in imported.files} == {"cfg.json", "sae_weights.safetensors"}


async def test_damaged_folders_are_refused(hub: HuggingFaceHub, roots: Path, tmp_path: Path) -> None:
    files = sae_files()
    short = {**files, "sae_weights.safetensors": files["sae_weights.safetensors"][:-4]}
    with pytest.raises(SAEInvalidError):
        await hub.import_(effect(str(write(roots / "short", short))))
    linked = write(roots / "linked", {"cfg.json": files["cfg.json"]})
    write(tmp_path, {"w": files["sae_weights.safetensors"]})
    (linked / "sae_weights.safetensors").symlink_to(tmp_path / "w")
    with pytest.raises(SAEInvalidError):
        await hub.import_(effect(str(linked)))
    with pytest.raises(NotFoundError):
        await hub.import_(effect(str(roots / "gone")))


async def test_a_digest_is_computed_again_only_when_the_file_changed(
    hub: HuggingFaceHub, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(roots / "one", sae_files())
    read: list[str] = []
    sha256_of = digesting.sha256_of

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(digesting, "sha256_of", counted)
    location = await placed(hub, folder)
    assert sorted(read) == ["cfg.json", "sae_weights.safetensors"]
    assert await hub.locate(location) == str(folder)
    assert len(read) == 2
    os.utime(folder / "cfg.json")
    assert await hub.locate(location) == str(folder)
    assert read[2:] == ["cfg.json"]


@pytest.mark.parametrize("change", ["one byte", "shorter", "gone", "swapped", "same time"])
async def test_what_changed_on_disk_is_noticed(hub: HuggingFaceHub, roots: Path, change: str) -> None:
    """Row 52, for an import; the contract suite has that of a download."""
    folder = write(roots / "one", sae_files())
    location = await placed(hub, folder)
    weights = folder / "sae_weights.safetensors"
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    if change == "gone":
        weights.unlink()
    elif change == "shorter":
        weights.write_bytes(content[:-1])
    elif change == "swapped":
        write(roots, {"other": bytes(content)})
        (roots / "other").replace(weights)
    else:
        weights.write_bytes(content)
        if change == "same time":
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SAEInvalidError, match="again") as refused:
        await hub.locate(location)
    assert refused.value.fields["file"] == "sae_weights.safetensors"


async def test_a_download_whose_cache_is_gone_says_so(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    server.publish("org/saes", sae_files())
    found = await hub.download(download(), Told())
    location = SaeLocation(source="hub", repository_id="org/saes", commit=found.commit, path=None, files=found.files)
    assert await hub.locate(location) == str(folder / "models--org--saes" / "snapshots" / str(found.commit))
    os.rename(folder, tmp_path / "moved")
    with pytest.raises(SAEInvalidError, match="download it again") as refused:
        await hub.locate(location)
    assert refused.value.fields["check"] == "missing"
    assert (await hub.download(download(at=2, force=True), Told())).files == found.files
    assert await hub.locate(location)


async def test_vectors_that_a_killed_process_had_begun_are_swept(hub: HuggingFaceHub, folder: Path) -> None:
    wanted = NewVectors(name="sea", hook_point=HookPoint("resid_post", 2), rows=((1.0, 2.0),))
    sae_id = await hub.keep_vectors(wanted)
    kept = folder.parent / "vectors"
    (kept / f"{sae_id}.abc.tmp").mkdir()
    (kept / f"{sae_id}.abc.tmp" / "vectors.safetensors").write_bytes(b"half")
    assert await hub.sweep({}) == 4
    assert [each.name for each in kept.iterdir()] == [sae_id]


async def test_changed_vectors_are_not_handed_out_nor_overwritten(hub: HuggingFaceHub, folder: Path) -> None:
    wanted = NewVectors(name="sea", hook_point=HookPoint("resid_post", 2), rows=((1.0, 2.0),))
    sae_id = await hub.keep_vectors(wanted)
    found = await hub.import_(ImportEffect(request_position=1, sae_id=sae_id, path=sae_id, source="vectors"))
    location = SaeLocation(source="vectors", repository_id=None, commit=None, path=sae_id, files=found.files)
    file = Path(await hub.locate(location)) / "vectors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(SAEInvalidError) as changed:
        await hub.locate(location)
    assert changed.value.fields["check"] == "sha256"
    with pytest.raises(SAEInUseError):
        await hub.keep_vectors(wanted)


async def test_a_layer_is_asked_for_before_the_import_is_accepted(hub: HuggingFaceHub, roots: Path) -> None:
    write_gguf(roots / "happy" / "happy.gguf", {3: torch.ones(4), 5: torch.ones(4)})
    with pytest.raises(SAEAmbiguousError) as refused:
        await hub.resolve_import(str(roots / "happy"))
    assert refused.value.fields["layers"] == [3, 5]
    assert await hub.resolve_import(str(roots / "happy"), 5) == str(roots / "happy")


async def test_the_digest_of_the_weights_as_they_lie_there(hub: HuggingFaceHub, roots: Path, tmp_path: Path) -> None:
    one, two = write(roots / "one", sae_files()), write(roots / "deep" / "two", sae_files())
    other = write(roots / "other", sae_files(seed=1))
    sha256 = digesting.sha256_of(one / "sae_weights.safetensors")
    assert await hub.import_digest(str(one)) == await hub.import_digest(str(two)) == sha256
    assert await hub.import_digest(str(other)) not in (sha256, None)
    assert (await hub.import_(effect(str(one)))).weights_sha256 == sha256
    (two / "cfg.json").write_bytes((two / "cfg.json").read_bytes() + b"\n")
    assert await hub.import_digest(str(two)) == sha256, "settings are not weights"
    (one / "sae_weights.safetensors").unlink()
    assert await hub.import_digest(str(one)) is None
    assert await hub.import_digest(str(tmp_path / "nothing")) is None
