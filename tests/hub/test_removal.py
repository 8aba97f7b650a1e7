"""Delete frees what it says, discard takes back what one try brought, the sweep takes what nobody wants."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from sae_actor.domain.effects import DeleteEffect, DownloadEffect
from sae_actor.domain.state import SaeLocation
from sae_actor.errors import ForbiddenError
from sae_actor.hub import HuggingFaceHub, removal
from sae_actor.ports import HubSae
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files
from tests.hub.conftest import MakeHub, Told, download, files_below, located

pytestmark = pytest.mark.anyio


def deletion(effect: DownloadEffect, location: SaeLocation, *kept: SaeLocation) -> DeleteEffect:
    return DeleteEffect(request_position=90, sae_id=effect.sae_id, location=location, kept=kept)


def unknown(effect: DownloadEffect) -> SaeLocation:
    """Where an SAE is whose download never completed."""
    return SaeLocation(source="hub", repository_id=effect.repository_id, commit=None, path=effect.path, files=())


async def half_way(server: HubServer, hub: HuggingFaceHub, effect: DownloadEffect) -> int:
    """Let a download fail with part of its bytes on disk; how many."""
    fault = server.fault("store", cut_after=20_000, times=1)
    server.fault("store", status=403)
    with pytest.raises(ForbiddenError):
        await hub.download(effect, Told())
    assert fault.times == 0
    server.heal()
    (partial,) = hub.folder.glob("*/blobs/*.incomplete")
    return partial.stat().st_size


async def test_the_last_sae_of_a_repository_takes_its_folder_along(
    server: HubServer, hub: HuggingFaceHub, folder: Path
) -> None:
    server.publish("org/saes", sae_files("a", d_in=32, d_sae=128))
    effect = download(path="a")
    location = located(effect, await hub.download(effect, Told()))
    before = await hub.disk_use()
    assert await hub.delete(deletion(effect, location)) == before == sum(file.bytes for file in location.files)
    assert os.listdir(folder) == []


async def test_only_the_folder_of_the_hub_is_touched(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    """Locations and claims come from files; whatever they say, nothing outside goes."""
    server.publish("org/saes", sae_files("a"))
    effect = download(path="a")
    location = located(effect, await hub.download(effect, Told()))
    canary = tmp_path / "canary"
    canary.write_text("sings")
    snapshot = folder / "models--org--saes" / "snapshots" / str(location.commit)
    (snapshot / "a" / "cfg.json").unlink()
    (snapshot / "a" / "cfg.json").symlink_to(canary)
    evil = SaeLocation(
        source="hub",
        repository_id="org/saes",
        commit=location.commit,
        path="a",
        files=(
            *location.files,
            *(type(location.files[0])(p, 5, "0" * 64) for p in ("../../../../canary", str(canary))),
        ),
    )
    await hub.delete(deletion(effect, evil))
    assert canary.read_text() == "sings"
    assert files_below(folder) == set()


async def test_other_tools_files_of_the_repository_stay(server: HubServer, hub: HuggingFaceHub, folder: Path) -> None:
    commit = server.publish("org/saes", {**sae_files("a"), "README.md": b"words"})
    effect = download(path="a")
    location = located(effect, await hub.download(effect, Told()))
    repository = folder / "models--org--saes"
    blob = repository / "blobs" / ("c" * 40)
    blob.write_bytes(b"words")
    (repository / "snapshots" / commit / "README.md").symlink_to(f"../../blobs/{blob.name}")
    await hub.delete(deletion(effect, location))
    assert await hub.sweep({}) == 0
    assert files_below(repository) == {f"blobs/{blob.name}", f"snapshots/{commit}/README.md", "refs/main"}


class CutOffError(BaseException):
    """Stands for kill -9 in the middle of a deletion."""


async def test_a_deletion_that_is_cut_off_anywhere_is_completed_by_the_next(
    server: HubServer, hub: HuggingFaceHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every removal of a name is a place to die at."""
    server.publish("org/saes", {**sae_files("a"), **sae_files("b", seed=2)})
    effects = download(path="a"), download(path="b", at=2)
    one, two = [located(effect, await hub.download(effect, Told())) for effect in effects]
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole, symlinks=True)
    for cut in itertools.count():
        shutil.rmtree(folder)
        shutil.copytree(whole, folder, symlinks=True)
        died = _delete_until(folder, deletion(effects[0], one, two), cut, monkeypatch)
        await hub.delete(deletion(effects[0], one, two))
        assert not any("/a/" in name for name in files_below(folder))
        assert await hub.locate(two)
        await hub.delete(deletion(effects[1], two))
        assert os.listdir(folder) == []
        if not died:
            break
    assert cut > 6


def _delete_until(folder: Path, effect: DeleteEffect, cut: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Delete, and die at the removal number `cut`; whether there was one."""
    steps = itertools.count()

    def dying(remove: Callable[..., None]) -> Callable[..., None]:
        def step(path: Path, *args: object, **kwargs: object) -> None:
            if next(steps) == cut:
                raise CutOffError
            remove(path, *args, **kwargs)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", dying(Path.unlink))
        patched.setattr(Path, "rmdir", dying(Path.rmdir))
        try:
            removal.delete(folder, effect)
        except CutOffError:
            return True
    return False


async def test_deleting_a_failed_download_frees_its_partial_file(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", sae_files("a", d_in=64, d_sae=256))
    effect = download(path="a")
    part = await half_way(server, hub, effect)
    assert await hub.delete(deletion(effect, unknown(effect))) >= part
    assert files_below(hub.folder) == set()


async def test_a_failed_download_goes_on_where_it_stopped(server: HubServer, hub: HuggingFaceHub) -> None:
    files = sae_files("a", d_in=64, d_sae=256)
    server.publish("org/saes", files)
    part = await half_way(server, hub, download(path="a"))
    before = server.sent("store")
    await hub.download(download(path="a", at=2), Told())
    assert server.sent("store") - before == len(files["a/sae_weights.safetensors"]) - part


async def test_a_forced_download_that_was_cut_off_fetches_nothing_twice(
    server: HubServer, hub: HuggingFaceHub, make_hub: MakeHub
) -> None:
    server.publish("org/saes", sae_files(d_in=64, d_sae=256))
    await hub.download(download(at=1), Told())
    forced = download(at=2, force=True)
    await half_way(server, hub, forced)
    settings, weights = len(server.asked("get")), server.sent("store")
    assert settings == 2
    found = await make_hub().download(forced, Told())
    assert len(server.asked("get")) == settings
    assert server.sent("store") - weights == found.files[1].bytes - 20_000


async def test_a_part_of_a_commit_that_is_no_longer_wanted_goes_with_the_next_try(
    server: HubServer, hub: HuggingFaceHub
) -> None:
    server.publish("org/saes", sae_files(d_in=64, d_sae=256, seed=1))
    await half_way(server, hub, download(at=1))
    server.publish("org/saes", sae_files(d_in=64, d_sae=256, seed=2))
    found = await hub.download(download(at=2), Told())
    assert await hub.disk_use() == sum(file.bytes for file in found.files)


async def test_delete_beside_a_download_takes_nothing_it_needs(server: HubServer, hub: HuggingFaceHub) -> None:
    """Both SAEs have the same settings file; the second has just found it there when the first is deleted."""
    files = {**sae_files("a", d_in=64, d_sae=256), **sae_files("b", d_in=64, d_sae=256, seed=2)}
    server.publish("org/saes", files)
    first, second = download(path="a"), download(path="b", at=2)
    one = located(first, await hub.download(first, Told()))
    server.fault("store", path="b/", rate=100_000)
    found: list[HubSae] = []

    async def run() -> None:
        found.append(await hub.download(second, Told()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(5):
            while not any("b/" in each.target for each in server.asked("store")):
                await anyio.sleep(0.01)
        freed = await hub.delete(deletion(first, one))
    assert freed == len(files["a/sae_weights.safetensors"])
    assert await hub.locate(located(second, found[0]))


async def test_the_sweep_takes_what_killed_processes_left(
    server: HubServer, hub: HuggingFaceHub, make_hub: MakeHub, folder: Path
) -> None:
    server.publish("org/saes", {**sae_files("a"), **sae_files("b", d_in=64, d_sae=256, seed=2)})
    whole, part = download(path="a"), download(path="b", at=2)
    location = located(whole, await hub.download(whole, Told()))
    size = await half_way(server, hub, part)
    repository = folder / "models--org--saes"
    wanted = files_below(folder)
    orphans = {
        repository / "blobs" / f"{'d' * 64}.incomplete": 500,
        repository / "blobs" / f"{'d' * 64}.1234abcd.incomplete": 700,
        repository / "blobs" / "tmp_12345678-1234-1234-1234-123456789abc": 0,
        repository / "blobs" / ("e" * 64): 900,
        repository / "refs" / f"main.{os.getpid()}.tmp": 40,
        repository / ".claims" / f"x.json.{os.getpid()}.tmp": 10,
        repository / "snapshots" / str(location.commit) / "a" / f".{'e' * 64}.{os.getpid()}.tmp": 0,
    }
    for path, count in orphans.items():
        path.write_bytes(bytes(count))
    restarted = make_hub()
    known = {whole.sae_id: location.commit, part.sae_id: None}
    assert await restarted.sweep(known) == 500 + 700 + 900
    assert files_below(folder) == wanted
    assert await restarted.sweep(known) == 0
    assert await restarted.sweep({whole.sae_id: location.commit}) > size  # no longer on record: cancelled
    assert not list(_incomplete(folder))
    assert await restarted.locate(location)


def _incomplete(folder: Path) -> Iterator[Path]:
    return folder.glob("*/blobs/*.incomplete")


async def test_the_commit_that_a_forced_download_replaced_goes_with_the_next_start(
    server: HubServer, hub: HuggingFaceHub, make_hub: MakeHub
) -> None:
    server.publish("org/saes", sae_files(seed=1, d_in=32))
    old = located(download(), await hub.download(download(), Told()))
    server.publish("org/saes", sae_files(seed=2, d_in=32))
    assert await hub.locate(old)
    new = located(download(), await hub.download(download(at=2, force=True), Told()))
    assert new.commit != old.commit
    assert await hub.locate(old)  # an SAE that is attached keeps its files while this process lives
    assert await make_hub().sweep({download().sae_id: new.commit}) > 0
    assert await hub.locate(new)
    assert await hub.disk_use() == sum(file.bytes for file in new.files)
