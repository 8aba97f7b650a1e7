"""A git-lfs pointer in place of a file is called that, wherever the file is wanted: no "damaged header"."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_actor.domain.effects import ImportEffect
from sae_actor.errors import ModelLoadError, SAEDownloadError, SAEError, SAEInvalidError
from sae_actor.formats.lfs import is_pointer
from sae_actor.hub import HuggingFaceHub
from sae_actor.sae import load_sae
from tests.fakes.hub_server import HubServer
from tests.formats import families, scopes
from tests.formats.dictionaries import dictionary
from tests.hub.build import sae_files, write
from tests.hub.conftest import MakeHub, Told, download, files_below


def pointer(content: bytes = b"weights") -> bytes:
    """As git-lfs writes it."""
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


def named(error: SAEError, file: str) -> None:
    assert error.detail.startswith(file) or file in error.detail
    assert "is a git-lfs pointer" in error.detail
    assert "`git lfs pull`" in error.detail


SAVED: dict[str, Callable[[Path], Path]] = {
    "safetensors": lambda root: write(root, sae_files()),
    "npz": lambda root: scopes.gemma_scope(root).path,
    "pt": lambda root: dictionary(root, "AutoEncoder").path,
    "pth": lambda root: families.goodfire(root).path,
}
"""Weights of each kind of file → what to load."""


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("allow_pickle", [True, False])
def test_weights_that_are_a_pointer(kind: str, allow_pickle: bool, tmp_path: Path) -> None:
    path = SAVED[kind](tmp_path / "sae")
    folder = path if path.is_dir() else path.parent
    weights = next(each for each in folder.rglob("*") if each.suffix in (".safetensors", ".npz", ".pt", ".pth"))
    weights.write_bytes(pointer(weights.read_bytes()))
    with pytest.raises(SAEInvalidError) as refused:
        load_sae(path, allow_pickle=allow_pickle)
    assert refused.value.fields["check"] == "lfs_pointer"
    named(refused.value, weights.name)


def test_settings_that_are_a_pointer(tmp_path: Path) -> None:
    folder = write(tmp_path, {**sae_files(), "cfg.json": pointer()})
    with pytest.raises(SAEInvalidError) as refused:
        load_sae(folder)
    named(refused.value, "cfg.json")


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["sae_weights.safetensors", "ae.pt", "params.npz"])
async def test_an_import(hub: HuggingFaceHub, tmp_path: Path, name: str) -> None:
    settings = {"sae_weights.safetensors": "cfg.json", "ae.pt": "config.json", "params.npz": "notes.json"}[name]
    folder = write(tmp_path / "imports" / "one", {settings: sae_files()["cfg.json"], name: pointer()})
    with pytest.raises(SAEInvalidError) as refused:
        await hub.import_(ImportEffect(request_position=1, sae_id="mine", path=str(folder)))
    named(refused.value, name)


@pytest.mark.anyio
async def test_a_download_of_a_repository_that_holds_the_pointer(
    server: HubServer, hub: HuggingFaceHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.hub_server.LARGE", ())  # the pointer was committed as it is
    monkeypatch.setattr("tests.fakes.hub_handler.LARGE", ())
    server.publish("org/saes", {**sae_files(), "sae_weights.safetensors": pointer()})
    with pytest.raises(SAEError) as refused:
        await hub.download(download(), Told())
    named(refused.value, "sae_weights.safetensors")
    assert not [name for name in files_below(folder) if "snapshots" in name]


@pytest.mark.anyio
async def test_a_download_from_a_mirror_that_sends_the_pointer(
    server: HubServer, hub: HuggingFaceHub, folder: Path
) -> None:
    files = sae_files()
    server.publish("org/saes", files)
    server.fault("store", body=pointer(files["sae_weights.safetensors"]))
    with pytest.raises(SAEDownloadError) as refused:
        await hub.download(download(), Told())
    named(refused.value, "sae_weights.safetensors")
    assert refused.value.fields["reason"] == "lfs_pointer"
    assert len(server.asked("store")) == 1
    assert not [name for name in files_below(folder) if "snapshots" in name]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
async def test_a_model_of_the_hub(
    server: HubServer, make_hub: MakeHub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.hub_server.LARGE", ())
    monkeypatch.setattr("tests.fakes.hub_handler.LARGE", ())
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    server.publish("org/tiny", {**files, name: pointer(files[name])})
    with pytest.raises(ModelLoadError, match=re.escape(name)) as refused:
        await make_hub().fetch_model("org/tiny", "main", lambda _: None)
    named(refused.value, name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pointer(), True),
        (pointer().replace(b"\n", b"\r\n"), True),
        (b"version https://git-lfs.github.com/spec/v1\next-0-foo sha256:00\noid sha256:11\nsize 3\n", True),
        (b"version https://hawser.github.com/spec/v1\noid sha256:11\nsize 3\n", True),
        (b"", False),
        (b"version 3 of the weights", False),
        (b"version https://git-lfs.github.com/spec/v1 is a text about pointers", False),
        (pointer() + bytes(2000), False),
    ],
)
def test_what_a_pointer_is(content: bytes, expected: bool) -> None:
    assert is_pointer(content) is expected
