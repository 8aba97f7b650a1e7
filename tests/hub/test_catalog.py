"""The catalog, and the choice of files by name that it shares with downloads."""

from __future__ import annotations

import sys

import pytest

from sae_actor.errors import RepositoryNotFoundError, SAEAmbiguousError, SAEDownloadError, SAEUnsupportedError
from sae_actor.formats import FORMATS
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
    entries = await hub.catalog("org/many")
    assert len(entries) == 300
    assert [entry.path for entry in entries] == sorted(f"blocks.{layer}" for layer in range(300))
    for entry in entries:
        assert (entry.format, entry.d_in, entry.d_sae) == ("sae_lens", 16, 64)
        assert entry.hook_name == f"{entry.path}.hook_resid_post"
        assert entry.file_size_bytes == len(files[f"{entry.path}/cfg.json"]) + len(weights)
    asked = {kind: len(server.asked(kind)) for kind in ("info", "tree", "get", "paths", "head", "store")}
    # 2,400 files and 301 folders, a thousand a page; of each SAE its settings, once.
    assert asked == {"info": 1, "tree": 3, "get": 300, "paths": 0, "head": 0, "store": 0}
    assert len(server.asked()) == 304


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
    "steps/ae_100.pt",
    "steps/ae_2000.pt",
    "steps/ae_2000.safetensors",
    "steps/config.json",
    "qwen/layer7.sae.pt",
    "good/Llama-3.1-8B-Instruct-SAE-l19.pth",
    "deep/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
    "heads/L5_Hcat.pt",
    "heads/L5_Hcat_cfg.json",
    "heads/other.pt",
    "open/resid_post_mlp_v5_32k/autoencoders/7.pt",
    "r1/config.json",
    "r1/sae_weights.safetensors",
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
        "pickled": ("dictionary_learning", {"pickled/ae.pt", "pickled/config.json"}),
        "steps/ae_100.pt": ("dictionary_learning", {"steps/ae_100.pt", "steps/config.json"}),
        "steps/ae_2000.safetensors": ("dictionary_learning", {"steps/ae_2000.safetensors", "steps/config.json"}),
        "qwen/layer7.sae.pt": ("qwen_scope", {"qwen/layer7.sae.pt"}),
        **{path: ("goodfire", {path}) for path in ("good/Llama-3.1-8B-Instruct-SAE-l19.pth",)},
        **{path: ("deepseek_r1", {path}) for path in ("deep/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",)},
        "heads/L5_Hcat.pt": ("kissane", {"heads/L5_Hcat.pt", "heads/L5_Hcat_cfg.json"}),
        **{path: ("openai", {path}) for path in ("open/resid_post_mlp_v5_32k/autoencoders/7.pt",)},
        "r1": ("sae_lens", {"r1/config.json", "r1/sae_weights.safetensors"}),
    }


def test_no_family_is_left_out() -> None:
    named = {each.name for sae in find(NAMES) for each in sae.formats}
    assert named | {"vectors"} == {each.name for each in FORMATS}


def test_settings_tell_families_with_the_same_names() -> None:
    r1 = choose(NAMES, "r1")
    assert [each.name for each in r1.formats] == ["sae_lens", "llama_scope_r1"]
    assert [each.name for each in r1.agreeing({"hook_point_in": "blocks.1.hook_resid_post"})] == ["llama_scope_r1"]
    assert [each.name for each in r1.agreeing({"d_in": 8})] == ["sae_lens"]
    assert choose(NAMES, "pickled").agreeing({"d_in": 8}) == ()


@pytest.mark.anyio
async def test_the_catalog_reads_settings_to_tell(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish(
        "org/saes",
        {
            "r1/config.json": b'{"hook_point_in": "blocks.3.hook_resid_post", "d_model": 8, "expansion_factor": 4}',
            "r1/sae_weights.safetensors": safetensors(),
            "no/config.json": b"{}",
            "no/ae.pt": b"something else",
            "yes/config.json": b'{"trainer": {"activation_dim": 8, "dict_size": 32, "submodule_name": "resid_3"}}',
            "yes/ae.pt": b"never fetched",
        },
    )
    entries = {entry.path: entry for entry in await hub.catalog("org/saes")}
    assert {path: (e.format, e.d_in, e.d_sae, e.hook_name) for path, e in entries.items()} == {
        "r1": ("llama_scope_r1", 8, 32, "blocks.3.hook_resid_post"),
        "yes": ("dictionary_learning", 8, 32, "resid_3"),
    }


def test_kinds_that_are_refused_say_which() -> None:
    for names, kind in (
        ({"a/W_enc_0.safetensors", "a/W_dec_0.safetensors"}, "clt"),
        ({"b/conf.yaml", "b/latest_ckpt.safetensors"}, "temporal"),
    ):
        with pytest.raises(SAEUnsupportedError) as refused:
            choose(names, None)
        assert refused.value.fields["architecture"] == kind


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lens", "lens"),
        ("gemma", "gemma/layer_1"),
        ("llama/checkpoints/final.safetensors", "llama/checkpoints/final.safetensors"),
        ("trans/layer_1.safetensors", "trans/layer_1.safetensors"),
        ("pickled", "pickled"),
        ("pickled/ae.pt", "pickled/ae.pt"),
        ("heads/other.pt", "heads/other.pt"),
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
        ("steps", SAEAmbiguousError),
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


def test_what_thousands_of_names_take_grows_with_their_number() -> None:
    def calls(count: int) -> int:
        names = {f"blocks.{n}/{file}" for n in range(count) for file in ("cfg.json", "sae_weights.safetensors")}
        made = 0

        def counted(*_: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(counted)
        try:
            found = find(names)
        finally:
            sys.setprofile(None)
        assert len(found) == count
        return made

    assert calls(4000) < 6 * calls(1000)
