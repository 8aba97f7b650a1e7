"""Models of the hub, fetched as the service does it and then loaded: what is kept, what is refused; on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import constants

from sae_actor.engine.model.loading import LoadedModel, load_model
from sae_actor.errors import ModelLoadError, ModelNotFoundError, SAEError
from sae_actor.hub import HuggingFaceHub
from sae_actor.ports import OnProgress, Progress
from tests.engine.asking import load, no_progress
from tests.engine.damage import loaded, pickle_weights, set_in_config
from tests.fakes.hub_server import HubServer
from tests.hub.conftest import QUICK

TOKEN = "hf_tokencanary161803398"
HUB_ID = "org/tiny-llama"

Fetch = Callable[..., Awaitable[LoadedModel]]

pytestmark = pytest.mark.anyio


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


@pytest.fixture
def fetch(hub: HubServer, tmp_path: Path) -> Fetch:
    """What `LazyEngine` does before each load: the hub's own process brings the files."""

    async def fetched(
        model: str,
        revision: str = "main",
        progress: OnProgress = no_progress,
        quantization: str | None = None,
    ) -> LoadedModel:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": constants.HF_HUB_CACHE,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "1" if constants.HF_HUB_OFFLINE else "0",
        }
        adapter = HuggingFaceHub(tmp_path / "hub", environment=environment, reserve_bytes=0, patience=QUICK)
        await adapter.fetch_model(model, revision, progress, quantization=quantization, device="cpu")
        return load_model(load(model, revision=revision), progress, threading.Event())

    return fetched


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_of(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def cached(name: str) -> Path:
    return next(Path(constants.HF_HUB_CACHE).glob(f"*/snapshots/*/{name}"))


async def test_a_model_of_the_hub_is_fetched_once(hub: HubServer, fetch: Fetch, tiny_llama: Path) -> None:
    extra = {
        "consolidated.safetensors": b"x" * 100,
        "onnx/model.onnx": b"x",
        "pytorch_model.bin": b"x",
        "README.md": b"",
    }
    commit = hub.publish(HUB_ID, {**files_of(tiny_llama), **extra})
    seen: list[Progress] = []
    model = await fetch(HUB_ID, progress=seen.append)
    assert model.facts.commit == commit
    assert model.facts.environment["model_commit"] == commit
    assert set(model.facts.environment["model_files"]) == set(files_of(tiny_llama))
    assert not [each for each in hub.asked("get", "store") if "consolidated" in each.target or ".bin" in each.target]
    assert [each.phase for each in seen if each.kind == "load"] == ["finding", "checking", "loading"]
    assert "fetch" in {each.kind for each in seen}
    assert hub.sent("store") >= weights_of(tiny_llama)

    asked = len(hub.asked("info", "tree", "head", "get", "store"))
    assert (await fetch(HUB_ID, commit)).facts.commit == commit
    assert len(hub.asked("info", "tree", "head", "get", "store")) == asked, "it is in the cache"


async def test_what_is_missing_in_the_cache_is_fetched(hub: HubServer, fetch: Fetch, tiny_llama: Path) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    facts = (await fetch(HUB_ID)).facts
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        cached(name).unlink()
        with pytest.raises(ModelNotFoundError, match="not in the cache"):
            loaded(HUB_ID)
        assert (await fetch(HUB_ID)).facts == facts


async def test_shards_are_fetched_by_their_index(
    hub: HubServer, fetch: Fetch, tiny_llama: Path, tmp_path: Path
) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    hub.publish(HUB_ID, files_of(folder), revision="v1")
    files = (await fetch(HUB_ID, "v1")).facts.environment["model_files"]
    assert len([name for name in files if name.startswith("model-")]) > 1


async def test_an_unknown_type_is_refused_before_its_weights_are_fetched(
    hub: HubServer, fetch: Fetch, copied: Path
) -> None:
    set_in_config(model_type="mamba")(copied)
    hub.publish(HUB_ID, files_of(copied))
    with pytest.raises(ModelLoadError, match="mamba"):
        await fetch(HUB_ID)
    assert not hub.asked("store")


async def test_quantised_weights_that_nothing_here_reads_are_not_fetched(
    hub: HubServer, fetch: Fetch, copied: Path
) -> None:
    set_in_config(quantization_config={"quant_method": "gptq", "bits": 4})(copied)
    hub.publish(HUB_ID, files_of(copied))
    with pytest.raises(ModelLoadError, match="quantised by gptq cannot be loaded here: that takes optimum and gptqmo"):
        await fetch(HUB_ID)
    assert not hub.asked("store")


async def test_nor_are_weights_to_be_quantised_twice(hub: HubServer, fetch: Fetch, copied: Path) -> None:
    set_in_config(quantization_config={"quant_method": "fp8"})(copied)
    hub.publish(HUB_ID, files_of(copied))
    with pytest.raises(ModelLoadError, match=r"quantised already \(fp8\): leave quantization out"):
        await fetch(HUB_ID, quantization="nf4")
    assert not hub.asked("store")


async def test_a_repository_without_safetensors(hub: HubServer, fetch: Fetch, copied: Path) -> None:
    pickle_weights(copied)
    hub.publish(HUB_ID, files_of(copied))
    with pytest.raises(ModelLoadError, match="no weights as safetensors"):
        await fetch(HUB_ID)


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ("org/none@main", (ModelNotFoundError, "the hub has no org/none")),
        (f"{HUB_ID}@v9", (ModelNotFoundError, "at v9")),
        ("org/no-model@main", (ModelNotFoundError, "no config.json")),
        ("org/gated@main", (ModelLoadError, "gated")),
    ],
)
async def test_what_the_hub_refuses(
    hub: HubServer, fetch: Fetch, tiny_llama: Path, asked: str, refused: tuple[type[SAEError], str]
) -> None:
    repository, _, revision = asked.partition("@")
    for name in (HUB_ID, "org/gated"):
        hub.publish(name, files_of(tiny_llama))
    hub.repositories["org/gated"].gated = True
    hub.publish("org/no-model", {"README.md": b"nothing"})
    with pytest.raises(refused[0], match=refused[1]) as caught:
        await fetch(repository, revision)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_hub_that_is_away(hub: HubServer, fetch: Fetch) -> None:
    for _ in range(QUICK.tries):
        hub.fault("any", drop=True)
    with pytest.raises(ModelLoadError, match="org/tiny-llama: ") as away:
        await fetch(HUB_ID)
    assert away.value.fields["tries"] == QUICK.tries


async def test_without_a_network_only_the_cache_is_used(
    hub: HubServer, fetch: Fetch, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    await fetch(HUB_ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked())
    await fetch(HUB_ID)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        await fetch("org/other")
    assert len(hub.asked()) == asked


async def test_a_damaged_file_of_the_cache_is_noticed(hub: HubServer, fetch: Fetch, tiny_llama: Path) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    await fetch(HUB_ID)
    weights = cached("model.safetensors").resolve()
    *rest, last = weights.read_bytes()
    weights.write_bytes(bytes((*rest, last ^ 1)))
    with pytest.raises(ModelLoadError, match=r"model\.safetensors in the cache is damaged"):
        loaded(HUB_ID)


async def test_a_cancelled_download_ends(hub: HubServer, fetch: Fetch, tiny_llama: Path) -> None:
    hub.publish(HUB_ID, files_of(tiny_llama))
    hub.fault("store", rate=50_000)

    def cancel_at_the_weights(progress: Progress) -> None:
        if progress.done > 10_000:
            fetching.cancel()

    fetching = asyncio.ensure_future(fetch(HUB_ID, progress=cancel_at_the_weights))
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert hub.sent("store") < weights_of(tiny_llama)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_folder_with_a_git_lfs_pointer(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / name).write_bytes(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n".encode())
    with pytest.raises(ModelLoadError, match=f"^{name} of the model is a git-lfs pointer, .*`git lfs pull`") as refused:
        load_model(load(str(folder)), lambda _: None, threading.Event())
    assert refused.value.fields["check"] == "lfs_pointer"
