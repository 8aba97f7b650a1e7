"""Models of the hub: what is fetched, what is kept, what is refused; against a fake hub on loopback."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import constants

from sae_actor.engine.model.loading import load_model
from sae_actor.engine.model.source import LoadCancelled
from sae_actor.errors import ModelLoadError, ModelNotFoundError, SAEError
from sae_actor.ports import Progress
from tests.engine.asking import load
from tests.engine.damage import loaded, pickle_weights, set_in_config
from tests.fakes.hub_server import HubServer

TOKEN = "hf_tokencanary161803398"
HUB_ID = "org/tiny-llama"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_of_the_hub_is_fetched_once(hub: HubServer, tiny_llama: Path) -> None:
    extra = {
        "consolidated.safetensors": b"x" * 100,
        "onnx/model.onnx": b"x",
        "pytorch_model.bin": b"x",
        "README.md": b"",
    }
    commit = hub.publish(HUB_ID, {**files_of(tiny_llama), **extra})
    seen: list[Progress] = []
    model = load_model(load(HUB_ID), seen.append, threading.Event())
    assert model.facts.commit == commit
    assert model.facts.environment["model_commit"] == commit
    assert set(model.facts.environment["model_files"]) == set(files_of(tiny_llama))
    assert not [each for each in hub.asked("get", "store") if "consolidated" in each.target or ".bin" in each.target]
    assert [each.phase for each in seen if each.phase != "fetching"] == ["finding", "checking", "loading"]
    fetched = [each.done for each in seen if each.phase == "fetching"]
    assert max(fetched) >= (tiny_llama / "model.safetensors").stat().st_size

    asked = len(hub.asked("info", "tree", "head", "get", "store"))
    assert loaded(HUB_ID).facts == model.facts
    assert len(hub.asked("info", "tree", "head", "get", "store")) == asked, "it is in the cache"


def test_what_is_missing_in_the_cache_is_fetched(hub: HubServer, tiny_llama: Path) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    facts = loaded(HUB_ID).facts
    snapshot = next(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*"))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (snapshot / name).unlink()
        assert loaded(HUB_ID).facts == facts


def test_shards_are_fetched_by_their_index(hub: HubServer, tiny_llama: Path, tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    hub.publish(HUB_ID, files_of(folder), revision="v1")
    assert (
        len([n for n in loaded(HUB_ID, revision="v1").facts.environment["model_files"] if n.startswith("model-")]) > 1
    )


def test_an_unknown_type_is_refused_before_its_weights_are_fetched(hub: HubServer, copied: Path) -> None:
    set_in_config(model_type="mamba")(copied)
    hub.publish(HUB_ID, files_of(copied))
    with pytest.raises(ModelLoadError, match="mamba"):
        loaded(HUB_ID)
    assert not hub.asked("store")


def test_a_repository_without_safetensors(hub: HubServer, copied: Path) -> None:
    pickle_weights(copied)
    hub.publish(HUB_ID, files_of(copied))
    with pytest.raises(ModelLoadError, match="no weights as safetensors"):
        loaded(HUB_ID)


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ("org/none@main", ModelNotFoundError, "the hub has no org/none"),
        (f"{HUB_ID}@v9", ModelNotFoundError, "at v9"),
        ("org/no-model@main", ModelNotFoundError, "no config.json"),
        ("org/gated@main", ModelLoadError, "gated"),
    ],
)
def test_what_the_hub_refuses(hub: HubServer, tiny_llama: Path, asked: str, error: type[SAEError], says: str) -> None:
    repository, _, revision = asked.partition("@")
    for name in (HUB_ID, "org/gated"):
        hub.publish(name, files_of(tiny_llama))
    hub.repositories["org/gated"].gated = True
    hub.publish("org/no-model", {"README.md": b"nothing"})
    with pytest.raises(error, match=says) as caught:
        loaded(repository, revision=revision)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_hub_that_is_away(hub: HubServer) -> None:
    hub.fault("any", drop=True)
    with pytest.raises(ModelLoadError, match="fetching org/tiny-llama failed"):
        loaded(HUB_ID)


def test_without_a_network_only_the_cache_is_used(
    hub: HubServer, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    loaded(HUB_ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked())
    loaded(HUB_ID)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        loaded("org/other")
    assert len(hub.asked()) == asked


def test_a_damaged_file_of_the_cache_is_noticed(hub: HubServer, tiny_llama: Path) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    hub.fault("store", corrupt="flip")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors in the cache is damaged"):
        loaded(HUB_ID)


def test_a_cancelled_download_ends(hub: HubServer, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of 10 MiB, which the tiny model has not
    hub.publish(HUB_ID, files_of(tiny_llama))
    hub.fault("store", rate=50_000)
    cancelled = threading.Event()

    def cancel_at_the_weights(progress: Progress) -> None:
        if progress.done > 10_000:
            cancelled.set()

    with pytest.raises(LoadCancelled):
        load_model(load(HUB_ID), cancel_at_the_weights, cancelled)
    assert hub.sent("store") < (tiny_llama / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_folder_with_a_git_lfs_pointer(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / name).write_bytes(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n".encode())
    with pytest.raises(ModelLoadError, match=f"^{name} of the model is a git-lfs pointer, .*`git lfs pull`") as refused:
        load_model(load(str(folder)), lambda _: None, threading.Event())
    assert refused.value.fields["check"] == "lfs_pointer"
