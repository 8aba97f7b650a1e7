"""Downloads that go well: what is fetched, where it lies, what is said meanwhile; and the refusals before a byte."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir

from sae_actor.domain.weights import weights_sha256
from sae_actor.errors import (
    DiskFullError,
    SAEAmbiguousError,
    SAEDownloadError,
    SAEInvalidError,
    SAEUnsupportedError,
)
from sae_actor.hub import HuggingFaceHub
from sae_actor.hub.digests import sha256_of
from sae_actor.ports import Progress
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files, safetensors
from tests.hub.conftest import TOKEN, MakeHub, Told, download, files_below

pytestmark = pytest.mark.anyio

CONFORMANCE = Path(__file__).parents[1] / "formats" / "conformance"
FAMILIES = ("gemma_scope_res", "llama_scope_res", "saelens_v6_transcoder", "sparsify_sae")
DAMAGED = ("bad_config_not_json", "bad_shape_mismatch", "bad_truncated_weights")


def case_of(name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a conformance case says, and its files as those of a repository."""
    case = CONFORMANCE / name
    skipped = (case / "case.json", case / "expected.safetensors")
    files = (path for path in case.rglob("*") if path.is_file() and path not in skipped)
    said = json.loads((case / "case.json").read_text())
    return said, {path.relative_to(case).as_posix(): path.read_bytes() for path in files}


async def test_the_files_lie_where_other_tools_look(server: HubServer, hub: HuggingFaceHub, folder: Path) -> None:
    files = sae_files("layer.1", d_in=64, d_sae=512)
    commit = server.publish("org/saes", {**files, "README.md": b"words", "layer.2/cfg.json": b"{}"})
    found = await hub.download(download(path="layer.1"), Told())
    assert found.commit == commit
    assert [file.path for file in found.files] == sorted(files)
    for file in found.files:
        at = hf_hub_download("org/saes", file.path, cache_dir=folder, local_files_only=True)
        assert hashlib.sha256(files[file.path]).hexdigest() == sha256_of(Path(at)) == file.sha256
    scanned = scan_cache_dir(folder)
    assert not scanned.warnings
    assert scanned.size_on_disk == sum(map(len, files.values()))
    assert {ref for repo in scanned.repos for ref in repo.refs} == {"main"}
    weights = next(file for file in found.files if file.path.endswith(".safetensors"))
    assert found.weights_sha256 == weights_sha256([("sae_weights.safetensors", weights.sha256)])
    assert found.weights_sha256 == hashlib.sha256(files["layer.1/sae_weights.safetensors"]).hexdigest()


async def test_progress_counts_to_the_total_at_most_four_times_a_second(server: HubServer, hub: HuggingFaceHub) -> None:
    files = sae_files("", d_in=256, d_sae=2048)
    server.publish("org/saes", files)
    server.fault("store", rate=3_000_000)
    told, times = Told(), []

    def heard(message: Progress) -> None:
        told(message)
        times.append(anyio.current_time())

    await hub.download(download(), heard)
    total = sum(map(len, files.values()))
    body = [message for message in told.messages if message.phase == "body" and message.rate]
    assert len(body) >= 3
    assert all(message.total == total and message.done <= total for message in body)
    assert [message.done for message in body] == sorted(message.done for message in body)
    assert body[-1].rate == pytest.approx(3_000_000, rel=0.5)
    assert body[-1].seconds_left == pytest.approx((total - body[-1].done) / 3_000_000, abs=0.7)
    assert body[-1].file == "sae_weights.safetensors"
    for start in times:
        assert sum(start <= at < start + 0.99 for at in times) <= 4


async def test_one_of_three_hundred_costs_its_own_bytes_and_list(server: HubServer, hub: HuggingFaceHub) -> None:
    files: dict[str, bytes] = {}
    weights = safetensors(64, 256)
    for layer in range(300):
        files[f"blocks.{layer}.hook_resid_post/cfg.json"] = sae_files(layer=layer, d_in=64, d_sae=256)["cfg.json"]
        files[f"blocks.{layer}.hook_resid_post/sae_weights.safetensors"] = weights
    server.publish("org/many", files)
    found = await hub.download(download("org/many", "blocks.7.hook_resid_post"), Told())
    assert found.sae.trained_layer == 7
    assert server.sent("store", "get") == sum(file.bytes for file in found.files)
    assert server.sent("info", "tree", "paths") < 2000
    with pytest.raises(SAEAmbiguousError, match="300 SAEs") as refused:
        await hub.download(download("org/many"), Told())
    assert len(refused.value.fields["matches"]) == 5


async def test_a_file_may_be_named_in_place_of_its_folder(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", {**sae_files("a/b", layer=3), **sae_files("a/c", layer=4)})
    found = await hub.download(download(path="a/b/sae_weights.safetensors"), Told())
    assert found.sae.trained_layer == 3
    assert {file.path for file in found.files} == {"a/b/cfg.json", "a/b/sae_weights.safetensors"}


async def test_branches_tags_and_commits(server: HubServer, hub: HuggingFaceHub, folder: Path) -> None:
    old = server.publish("org/saes", sae_files(seed=1))
    new = server.publish("org/saes", sae_files(seed=2), revision="refs/pr/1")
    assert old != new
    assert (await hub.download(download(revision="refs/pr/1"), Told())).commit == new
    assert (await hub.download(download(revision=old), Told())).commit == old
    assert files_below(folder / "models--org--saes" / "refs") == {"refs/pr/1"}


async def test_private_repositories_open_with_the_token(server: HubServer, make_hub: MakeHub) -> None:
    server.publish("org/private", sae_files(), token=TOKEN)
    with pytest.raises(SAEDownloadError) as refused:
        await make_hub(env={"HF_TOKEN": "hf_wrong"}).download(download("org/private"), Told())
    assert refused.value.code == "not_found_or_private"
    assert (await make_hub().download(download("org/private"), Told())).sae.d_in == 8


@pytest.mark.parametrize("name", FAMILIES)
async def test_every_family_is_chosen_and_described(server: HubServer, hub: HuggingFaceHub, name: str) -> None:
    said, files = case_of(name)
    server.publish(said["repo_id"], {**files, "README.md": b"words"})
    found = await hub.download(download(said["repo_id"], said["path"]), Told())
    assert (found.sae.format, found.sae.d_in, found.sae.d_sae) == (said["format"], said["d_in"], said["d_sae"])
    assert found.sae.trained_layer == said["layer"]
    assert {file.path for file in found.files} == set(files)


@pytest.mark.parametrize("name", DAMAGED)
async def test_damaged_files_are_refused_and_taken_out_again(
    server: HubServer, hub: HuggingFaceHub, folder: Path, name: str
) -> None:
    said, files = case_of(name)
    server.publish("org/bad", files)
    with pytest.raises(SAEInvalidError):
        await hub.download(download("org/bad", said["path"]), Told())
    assert files_below(folder) == set()


@pytest.mark.parametrize(
    ("files", "error", "check"),
    [
        ({"ae.pt": b"\x80\x04cos\nsystem\n", "config.json": b"{}"}, SAEInvalidError, "pickle"),
        ({"sae.pkl": b"\x80\x04cos\nsystem\n"}, SAEUnsupportedError, "pickle"),
        ({"modeling_evil.py": b"import os", "notes.txt": b""}, SAEUnsupportedError, "format"),
        ({"cfg.json": b"{}", "sae_weights.safetensors": b"\x80\x04cos\nsystem\n."}, SAEInvalidError, "header"),
    ],
    ids=["pickle", "pickle of no kind", "code", "pickle named safetensors"],
)
async def test_what_could_run_is_refused(
    *,
    server: HubServer,
    hub: HuggingFaceHub,
    folder: Path,
    files: dict[str, bytes],
    error: type[Exception],
    check: str,
) -> None:
    server.publish("org/evil", files)
    with pytest.raises(error) as refused:
        await hub.download(download("org/evil"), Told())
    fields = getattr(refused.value, "fields", {})
    assert fields["check"].startswith(check)
    assert files_below(folder) == set()


async def test_two_that_want_the_same_bytes_fetch_them_once(server: HubServer, hub: HuggingFaceHub) -> None:
    files = {**sae_files("a", d_in=256, d_sae=1024), **sae_files("b", d_in=256, d_sae=1024)}
    server.publish("org/saes", files)
    server.fault("store", rate=4_000_000)
    async with anyio.create_task_group() as tasks:
        for path in ("a", "b"):
            tasks.start_soon(hub.download, download(path=path), Told())
    assert server.sent("store") == len(files["a/sae_weights.safetensors"])
    assert not any(name.endswith(".incomplete") for name in files_below(hub.folder))


async def test_force_fetches_anew_and_the_old_files_stay_till_then(
    server: HubServer, hub: HuggingFaceHub, folder: Path
) -> None:
    server.publish("org/saes", sae_files(d_in=64, d_sae=256))
    found = await hub.download(download(), Told())
    seen: list[bool] = []

    def heard(_: Progress) -> None:
        seen.append((folder / "models--org--saes" / "snapshots" / str(found.commit) / "cfg.json").exists())

    again = await hub.download(download(at=2, force=True), heard)
    assert again == found
    assert seen
    assert all(seen)
    assert len(server.asked("store")) == 2


async def test_offline_gives_what_is_here_and_nothing_else(server: HubServer, make_hub: MakeHub) -> None:
    server.publish("org/saes", sae_files("a"))
    found = await make_hub().download(download(path="a"), Told())
    offline = make_hub(env={"HF_HUB_OFFLINE": "1"})
    asked = len(server.asked())
    assert await offline.download(download(path="a", at=2), Told()) == found
    for effect in (download("org/none"), download(path="a", revision="other"), download(path="a", force=True)):
        with pytest.raises(SAEDownloadError) as refused:
            await offline.download(effect, Told())
        assert refused.value.fields["reason"] == "offline"
    assert len(server.asked()) == asked


async def test_quota_and_free_disk_are_checked_before_a_byte(
    server: HubServer, make_hub: MakeHub, folder: Path
) -> None:
    files = sae_files(d_in=64, d_sae=256)
    server.publish("org/saes", files)
    size = sum(map(len, files.values()))
    for settings, reason in (({"quota_bytes": size - 1}, "quota"), ({"reserve_bytes": 1 << 60}, "no_space")):
        with pytest.raises(DiskFullError) as refused:
            await make_hub(**settings).download(download(), Told())
        assert refused.value.fields["reason"] == reason
    assert not server.asked("head", "get", "store")
    assert files_below(folder) == set()
    hub = make_hub(quota_bytes=size)
    await hub.download(download(), Told())
    assert await hub.disk_use() == size


async def test_a_disk_that_fills_up_midway_keeps_nothing_of_the_file(
    server: HubServer, hub: HuggingFaceHub, folder: Path
) -> None:
    """Row 13, by a limit on the size of files that the child inherits."""
    files = sae_files(d_in=256, d_sae=2048)
    server.publish("org/saes", files)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DiskFullError) as refused:
            await hub.download(download(), Told())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.fields["reason"] == "no_space"
    assert not any(name.endswith(".incomplete") for name in files_below(folder))
    assert (await hub.download(download(at=2), Told())).sae.d_in == 256


async def test_a_folder_of_the_cache_that_is_a_link_is_not_followed(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    commit = server.publish("org/saes", sae_files("a/b"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    snapshot = folder / "models--org--saes" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    os.symlink(elsewhere, snapshot / "a")
    with pytest.raises(SAEDownloadError) as refused:
        await hub.download(download(path="a/b"), Told())
    assert refused.value.fields["reason"] == "unsafe_name"
    assert files_below(elsewhere) == set()
