"""The catalog, and the choice of files by name that it shares with downloads."""

from __future__ import annotations

import time

import pytest

from sae_actor.errors import RepositoryNotFoundError, SAEAmbiguousError, SAEDownloadError, SAEUnsupportedError
from sae_actor.hub import HuggingFaceHub
from sae_actor.hub.selection import choose, find, target
from tests.fakes.hub_server import HubServer
from tests.hub.build import config, sae_files, safetensors


@pytest.mark.anyio
async def test_three_hundred_are_listed_in_one_call_without_their_weights(
    server: HubServer, hub: HuggingFaceHub
) -> None:
    weights, files = safetensors(16, 64), {}
    for layer in range(300):
        files[f"blocks.{layer}/cfg.json"] = config(16, 64, layer, seed=layer)
        files[f"blocks.{layer}/sae_weights.safetensors"] = weights
        files[f"blocks.{layer}/sparsity.safetensors"] = b"other"
    server.publish("org/many", {**files, **{f"notes/{n}.md": b"words" for n in range(1500)}})
    start = time.monotonic()
    entries = await hub.catalog("org/many")
    assert time.monotonic() - start < 15
    assert len(entries) == 300
    assert [entry.path for entry in entries] == sorted(f"blocks.{layer}" for layer in range(300))
    for entry in entries:
        assert (entry.format, entry.d_in, entry.d_sae) == ("sae_lens", 16, 64)
        assert entry.hook_name == f"{entry.path}.hook_resid_post"
        assert entry.file_size_bytes == len(files[f"{entry.path}/cfg.json"]) + len(weights)
    assert not server.asked("store")
    assert len(server.asked("tree")) == 3  # 2,700 entries, a thousand a page


@pytest.mark.anyio
async def test_settings_that_cannot_be_read_leave_an_entry_without_widths(
    server: HubServer, hub: HuggingFaceHub
) -> None:
    server.publish("org/saes", {**sae_files("a"), **sae_files("b", layer=2), **sae_files("c", layer=3)})
    server.fault("get", path="a/", status=500)
    server.fault("get", path="b/", corrupt="flip")
    entries = {entry.path: entry for entry in await hub.catalog("org/saes")}
    assert entries["a"].d_in is entries["b"].d_in is None
    assert entries["c"].d_in == 8
    assert all(entry.file_size_bytes > 1000 for entry in entries.values())


@pytest.mark.anyio
async def test_a_catalog_fails_as_a_download_does(server: HubServer, hub: HuggingFaceHub) -> None:
    with pytest.raises(RepositoryNotFoundError):
        await hub.catalog("org/none")
    server.publish("org/saes", sae_files())
    with pytest.raises(RepositoryNotFoundError):
        await hub.catalog("org/saes", "v9")
    with pytest.raises(SAEDownloadError):
        await hub.catalog("org/saes", "../main")
    server.fault("tree", status=503)
    with pytest.raises(SAEDownloadError) as refused:
        await hub.catalog("org/saes")
    assert refused.value.fields["reason"] == "hub_unavailable"


NAMES = {
    "README.md",
    "lens/cfg.json",
    "lens/sae_weights.safetensors",
    "lens/sparsity.safetensors",
    "gemma/layer_1/params.npz",
    "gemma2/config.json",
    "gemma2/params.safetensors",
    "gemma2/examples.safetensors",
    "llama/hyperparams.json",
    "llama/checkpoints/final.safetensors",
    "sparse/config.json",
    "sparse/layers.10/cfg.json",
    "sparse/layers.10/sae.safetensors",
    "trans/config.yaml",
    "trans/layer_0.safetensors",
    "trans/layer_1.safetensors",
    "bare/sae_weights.safetensors",
    "pickled/ae.pt",
    "pickled/config.json",
}


def test_every_family_is_found_by_its_names() -> None:
    found = {sae.path: (sae.format, set(sae.files)) for sae in find(NAMES)}
    assert found == {
        "lens": ("sae_lens", {"lens/cfg.json", "lens/sae_weights.safetensors"}),
        "gemma/layer_1": ("gemma_scope", {"gemma/layer_1/params.npz"}),
        "gemma2": ("gemma_scope_2", {"gemma2/config.json", "gemma2/params.safetensors"}),
        "llama": ("llama_scope", {"llama/hyperparams.json", "llama/checkpoints/final.safetensors"}),
        "sparse/layers.10": (
            "sparsify",
            {"sparse/config.json", "sparse/layers.10/cfg.json", "sparse/layers.10/sae.safetensors"},
        ),
        "trans/layer_0.safetensors": ("layer_file", {"trans/config.yaml", "trans/layer_0.safetensors"}),
        "trans/layer_1.safetensors": ("layer_file", {"trans/config.yaml", "trans/layer_1.safetensors"}),
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lens", "lens"),
        ("gemma", "gemma/layer_1"),
        ("llama/checkpoints/final.safetensors", "llama/checkpoints/final.safetensors"),
        ("trans/layer_1.safetensors", "trans/layer_1.safetensors"),
    ],
)
def test_a_path_names_one(path: str, expected: str) -> None:
    assert target(NAMES, path) == expected


def test_a_file_outside_the_families_is_taken_with_what_lies_beside_it() -> None:
    found = choose({"x/own.safetensors", "x/cfg.json", "x/other.safetensors"}, "x/own.safetensors")
    assert found.files == ("x/cfg.json", "x/own.safetensors")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (None, SAEAmbiguousError),
        ("trans", SAEAmbiguousError),
        ("pickled", SAEUnsupportedError),
        ("pickled/ae.pt", SAEUnsupportedError),
        ("bare", SAEUnsupportedError),
        ("llama/checkpoints", SAEUnsupportedError),
        ("README.md", SAEUnsupportedError),
        ("nowhere", RepositoryNotFoundError),
        ("len", RepositoryNotFoundError),
    ],
)
def test_what_is_not_one_is_refused(path: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        choose(NAMES, path)


def test_thousands_of_names_take_no_time() -> None:
    names = {f"blocks.{n}/{file}" for n in range(20_000) for file in ("cfg.json", "sae_weights.safetensors")}
    start = time.monotonic()
    assert len(find(names)) == 20_000
    assert time.monotonic() - start < 2
