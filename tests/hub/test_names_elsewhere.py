"""Names of SAELens and Neuronpedia: what they stand for, and what must be there to know it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sae_actor.errors import NotFoundError, SAEUnsupportedError
from sae_actor.ports import NamedSae
from tests.hub.conftest import MakeHub

pytestmark = pytest.mark.anyio

REGISTRY = """
gpt2-small-res-jb:
  conversion_func: null
  model: gpt2-small
  repo_id: jbloom/GPT2-Small-SAEs-Reformatted
  saes:
  - id: blocks.0.hook_resid_pre
    path: blocks.0.hook_resid_pre
    neuronpedia: gpt2-small/0-res-jb
  - id: blocks.1.hook_resid_pre
    path: blocks.1.hook_resid_pre
gemma-scope-2b-pt-res-canonical:
  model: gemma-2-2b
  repo_id: google/gemma-scope-2b-pt-res
  saes:
  - id: layer_0/width_16k/canonical
    path: layer_0/width_16k/average_l0_105
alone:
  repo_id: someone/alone
  saes:
  - {id: root, path: .}
"""
SOURCES = [
    {"modelId": "gemma-2-2b", "id": "0-gemmascope-res-16k", "hfRepoId": "google/gemma-scope-2b-pt-res",
     "hfFolderId": "layer_0/width_16k/average_l0_105"},
    {"modelId": "gemma-2-2b", "id": "unpublished", "hfRepoId": None, "hfFolderId": None},
]  # fmt: skip
JBLOOM = "jbloom/GPT2-Small-SAEs-Reformatted"


def rewrite(file: Path, content: str) -> None:
    file.write_text(content)


@pytest.fixture
def sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package sae_lens that cannot be imported; its registry file."""
    package = tmp_path / "site" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it is not to be imported')")
    (package / "pretrained_saes.yaml").write_text(REGISTRY)
    monkeypatch.syspath_prepend(str(package.parent))
    return package / "pretrained_saes.yaml"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Neuronpedia's export in the data folder."""
    file = tmp_path / "data" / "neuronpedia" / "gemma-2-2b" / "source.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(map(json.dumps, SOURCES)))
    return file


@pytest.mark.parametrize(
    ("name", "repository_id", "path"),
    [
        ("saelens:gpt2-small-res-jb/blocks.0.hook_resid_pre", JBLOOM, "blocks.0.hook_resid_pre"),
        ("neuronpedia:gpt2-small/0-res-jb", JBLOOM, "blocks.0.hook_resid_pre"),
        (
            "saelens:gemma-scope-2b-pt-res-canonical/layer_0/width_16k/canonical",
            "google/gemma-scope-2b-pt-res",
            "layer_0/width_16k/average_l0_105",
        ),
        ("saelens:alone/root", "someone/alone", None),
    ],
)
async def test_names_of_the_registry(
    name: str, repository_id: str, path: str | None, make_hub: MakeHub, sae_lens: Path
) -> None:
    assert await make_hub().named(name) == (NamedSae(named_as=name, repository_id=repository_id, path=path),)
    assert "sae_lens" not in sys.modules


async def test_a_release_is_all_of_it(make_hub: MakeHub, sae_lens: Path) -> None:
    hub = make_hub()
    found = await hub.named("saelens:gpt2-small-res-jb")
    assert [each.path for each in found] == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    with pytest.raises(NotFoundError, match="saelens:gpt2-small-res"):
        await hub.named("saelens:gpt2-small-res")  # the beginning of a name, and of no part of one


async def test_a_name_that_is_not_known_is_told_its_neighbours(make_hub: MakeHub, sae_lens: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no saelens:gpt2-small-res-jb/x; there are saelens:gpt2-sma"):
        await make_hub().named("saelens:gpt2-small-res-jb/x")
    with pytest.raises(NotFoundError, match=r"there is no saelens:nothing/at\.all$"):
        await make_hub().named("saelens:nothing/at.all")


async def test_a_registry_that_was_renewed_is_read_again(make_hub: MakeHub, sae_lens: Path) -> None:
    hub = make_hub()
    with pytest.raises(NotFoundError):
        await hub.named("saelens:new/one")
    rewrite(sae_lens, REGISTRY + "new:\n  repo_id: someone/new\n  saes: [{id: one, path: one}]\n")
    assert (await hub.named("saelens:new/one"))[0].repository_id == "someone/new"


async def test_sources_of_neuronpedia(make_hub: MakeHub, export: Path) -> None:
    hub = make_hub()
    name = "neuronpedia:gemma-2-2b/0-gemmascope-res-16k"
    assert await hub.named(name) == (
        NamedSae(named_as=name, repository_id="google/gemma-scope-2b-pt-res", path="layer_0/width_16k/average_l0_105"),
    )
    with pytest.raises(NotFoundError, match="there is no neuronpedia:gemma-2-2b/unpublished"):
        await hub.named("neuronpedia:gemma-2-2b/unpublished")
    rewrite(export, "[]")
    with pytest.raises(SAEUnsupportedError, match="is not an export of Neuronpedia"):
        await hub.named(name)


async def test_nothing_here_knows_names(make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(SAEUnsupportedError, match=r"no names of saelens are known here: pip install 'sae-actor\[names"):
        await make_hub().named("saelens:gpt2-small-res-jb/blocks.0.hook_resid_pre")
    with pytest.raises(SAEUnsupportedError, match=r"or put Neuronpedia's source.jsonl under .*neuronpedia"):
        await make_hub().named("neuronpedia:gpt2-small/0-res-jb")
