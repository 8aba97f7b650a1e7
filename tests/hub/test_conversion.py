"""Pickles: converted by a child process, kept beside, loaded in place of the original, freed with the SAE."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch

from sae_actor.domain.effects import DeleteEffect, ImportEffect
from sae_actor.domain.state import SaeLocation
from sae_actor.domain.weights import WeightsFile, import_id_of, weights_sha256
from sae_actor.errors import DiskFullError, SAEInvalidError
from sae_actor.hub import HuggingFaceHub
from sae_actor.hub.digests import sha256_of
from sae_actor.sae import load_sae
from tests.fakes.hub_server import HubServer
from tests.formats import families, scopes
from tests.formats.dictionaries import dictionary
from tests.formats.written import D_IN, Written, put, weights
from tests.hub.conftest import MakeHub, Told, download, files_below, located

pytestmark = pytest.mark.anyio

Family = Callable[[Path], Written]


def batch_topk(root: Path) -> Written:
    return dictionary(root, "BatchTopKSAE")


PICKLED: dict[str, Family] = {
    "dictionary": batch_topk,
    "openai": families.openai_topk,
    "goodfire": families.goodfire,
    "deepseek": families.deepseek_r1,
    "kissane": families.kissane,
    "qwen": families.qwen_scope,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(folder: str, case: Written) -> None:
    sae = load_sae(folder, dtype="float32")
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(sae(x).numpy(), case.forward(x.double().numpy()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PICKLED)
async def test_a_pickle_from_the_hub(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path, name: str
) -> None:
    case = PICKLED[name](tmp_path / "made")
    repository = case.repository_id or f"org/{name}"
    server.publish(repository, contents(tmp_path / "made" if name != "qwen" else case.path.parent))
    path = None if name != "qwen" else case.path.name
    effect, told = download(repository, path), Told()
    found = await hub.download(effect, told)
    assert (found.sae.format, found.sae.hook_point, found.sae.trained_on) == (
        case.format,
        case.hook_point,
        case.trained_on,
    )
    pickles = [file for file in found.files if file.path.endswith((".pt", ".pth"))]
    (made,) = [file for file in found.files if file.converted_from is not None]
    assert [made.converted_from] == [file.path for file in pickles]
    assert made.path == os.path.splitext(pickles[0].path)[0] + ".safetensors"
    assert found.weights_sha256 == weights_sha256([(os.path.basename(made.path), made.sha256)])
    assert found.weights_files == (WeightsFile(made.path, made.sha256),)
    where = await hub.locate(located(effect, found))
    assert sha256_of(Path(where)) == made.sha256
    assert Path(where).is_relative_to(folder / "converted")
    check(where, case)
    size = await hub.disk_use()
    assert size >= sum(file.bytes for file in found.files)
    deletion = DeleteEffect(request_position=9, sae_id=effect.sae_id, location=located(effect, found))
    assert await hub.delete(deletion) == size
    assert files_below(folder) == set()


async def test_what_two_saes_share_stays_until_the_second_goes(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    server.publish("org/one", contents(batch_topk(tmp_path / "made").path))
    first, second = download("org/one"), download("org/one", "ae.pt", at=2)
    found = await hub.download(first, Told())
    also = await hub.download(second, Told())
    assert found.files == also.files
    assert found.weights_sha256 == also.weights_sha256
    one, two = located(first, found), located(second, also)
    assert await hub.locate(one) == await hub.locate(two)
    assert await hub.delete(DeleteEffect(request_position=8, sae_id=first.sae_id, location=one, kept=(two,))) == 0
    assert await hub.locate(two)
    await hub.sweep({second.sae_id: also.commit})
    assert await hub.locate(two)
    assert await hub.delete(DeleteEffect(request_position=9, sae_id=second.sae_id, location=two)) > 0
    assert files_below(folder) == set()


def damage(file: Path, change: str) -> None:
    if change == "gone":
        file.unlink()
        return
    file = file if change == "weights" else file.with_name("config.json")
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


async def test_a_converted_file_that_changed_is_not_handed_out(
    server: HubServer, hub: HuggingFaceHub, tmp_path: Path
) -> None:
    server.publish("org/one", contents(batch_topk(tmp_path / "made").path))
    effect = download("org/one")
    found = await hub.download(effect, Told())
    location = located(effect, found)
    for at, change in enumerate(("weights", "settings", "gone"), start=2):
        damage(Path(await hub.locate(location)), change)
        with pytest.raises(SAEInvalidError, match="download it again"):
            await hub.locate(location)
        again = await hub.download(download("org/one", at=at, force=True), Told())
        assert again == found
    assert await hub.locate(location)


async def test_an_import_of_a_pickle_leaves_the_users_folder_alone(
    hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    case = batch_topk(tmp_path / "imports")
    before = contents(tmp_path / "imports")
    resolved = await hub.resolve_import(str(case.path))
    effect = ImportEffect(request_position=1, sae_id=import_id_of(resolved), path=resolved)
    found = await hub.import_(effect)
    assert {file.path: file.converted_from for file in found.files} == {
        "config.json": None,
        "ae.pt": None,
        "ae.safetensors": "ae.pt",
    }
    assert found.sae.hook_point == case.hook_point
    location = SaeLocation(
        sae_id=effect.sae_id,
        source="import",
        repository_id=None,
        commit=None,
        path=resolved,
        files=found.files,
    )
    assert location.written_by_service
    where = await hub.locate(location)
    assert Path(where).is_relative_to(folder)
    check(where, case)
    assert contents(tmp_path / "imports") == before
    await hub.sweep({})
    made = sum(path.stat().st_size for path in Path(where).parent.iterdir())
    assert await hub.disk_use() == made
    assert await hub.delete(DeleteEffect(request_position=2, sae_id=effect.sae_id, location=location)) == made
    assert contents(tmp_path / "imports") == before
    assert files_below(folder) == set()


async def refused(check: str, case: Written, server: HubServer, hub: HuggingFaceHub) -> None:
    """It comes in neither as a download nor as an import."""
    server.publish("org/bad", contents(case.path))
    with pytest.raises(SAEInvalidError) as error:
        await hub.download(download("org/bad"), Told())
    assert error.value.fields["check"] == check
    resolved = await hub.resolve_import(str(case.path))
    with pytest.raises(SAEInvalidError) as error:
        await hub.import_(ImportEffect(request_position=1, sae_id=import_id_of(resolved), path=resolved))
    assert error.value.fields["check"] == check


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


async def test_a_pickle_that_would_run_something_runs_nothing(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    case = batch_topk(tmp_path / "imports")
    torch.save({"encoder.weight": Evil(canary)}, case.path / "ae.pt", pickle_protocol=pickle.HIGHEST_PROTOCOL)
    await refused("pickle", case, server, hub)
    assert not canary.exists()
    assert files_below(folder) == set()


@pytest.mark.parametrize("pickled", [True, False])
async def test_values_that_are_not_finite_are_never_cached(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path, *, pickled: bool
) -> None:
    if pickled:
        case = batch_topk(tmp_path / "imports")
        tensors = torch.load(case.path / "ae.pt", weights_only=True)
        tensors["encoder.weight"][3, 4] = torch.nan
        put(case.path, "ae.pt", tensors)
    else:
        case = scopes.gemma_scope_2(tmp_path / "imports")
        w = {name.lower(): w for name, w in weights(4).items() if name != "W_skip"}
        w["w_dec"][3, 4] = -torch.inf
        put(case.path, "params.safetensors", w)
    await refused("finite", case, server, hub)
    assert files_below(folder) == set()


async def test_room_for_what_is_converted_is_asked_for_beforehand(
    server: HubServer, make_hub: MakeHub, tmp_path: Path
) -> None:
    files = contents(batch_topk(tmp_path / "made").path)
    server.publish("org/one", files)
    total = sum(map(len, files.values()))
    with pytest.raises(DiskFullError):
        await make_hub(quota_bytes=total + 100).download(download("org/one"), Told())
    assert not server.asked("store")


async def test_a_cancel_while_converting_leaves_nothing(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    server.publish("org/one", contents(batch_topk(tmp_path / "made").path))
    effect = download("org/one")
    told = Told()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.download, effect, told)
        with anyio.fail_after(20):
            while "converting" not in told.phases:
                await anyio.sleep(0.01)
        started = anyio.current_time()
        tasks.cancel_scope.cancel()
    await hub.discard(effect)
    assert anyio.current_time() - started < 2
    assert files_below(folder) == set()


async def test_a_pickle_is_known_by_its_own_bytes_wherever_it_lies(tmp_path: Path, folder: Path) -> None:
    first, second = batch_topk(tmp_path / "imports"), batch_topk(tmp_path / "others")
    hub = HuggingFaceHub(folder, import_roots=[tmp_path])
    paths = [await hub.resolve_import(str(case.path)) for case in (first, second)]
    (digest,) = {await hub.import_digest(path) for path in paths}
    assert digest == sha256_of(Path(paths[0]) / "ae.pt")
    sae_id = import_id_of(paths[0], digest=digest)
    assert sae_id == import_id_of(paths[1], digest=digest)
    found = await hub.import_(ImportEffect(request_position=1, sae_id=sae_id, path=paths[0]))
    location = SaeLocation(
        sae_id=sae_id,
        source="import",
        repository_id=None,
        commit=None,
        path=paths[0],
        files=found.files,
    )
    where = await hub.locate(location)
    # The other one changed before it was read: what was converted of the first one stays.
    (Path(paths[1]) / "ae.pt").write_bytes(b"not a pickle")
    with pytest.raises(SAEInvalidError):
        await hub.import_(ImportEffect(request_position=2, sae_id=sae_id, path=paths[1]))
    assert await hub.locate(location) == where
    check(where, first)
    await hub.close()
