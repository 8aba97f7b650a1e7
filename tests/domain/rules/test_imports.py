"""Ids of imports: the folder's name and the digest of the weights, wherever the folder lies; those of older logs."""

from __future__ import annotations

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Import
from sae_actor.domain.effects import ImportEffect
from sae_actor.domain.messages import WeighedImport
from sae_actor.domain.refs import SaeFile
from sae_actor.domain.weights import WeightsFile, import_id_of
from tests.domain.dsl import (
    BROKEN,
    FOLDER,
    IMPORTED,
    STARTED,
    Step,
    Story,
    attach_done,
    attaching,
    description,
    given,
    imported,
    loaded,
)

DIGEST = "abcdef01" + "0" * 56
ID = "demo-abcdef01"
ELSEWHERE = "/other/place/demo"
HELD = (WeightsFile("sae_weights.safetensors", DIGEST),)


def weighed(path: str = FOLDER, digest: str = DIGEST, layer: int | None = None) -> WeighedImport:
    return WeighedImport(command=Import(path=path, layer=layer), digest=digest)


def requested(path: str = FOLDER, sae_id: str = ID, **more: object) -> ev.DownloadRequested:
    return ev.DownloadRequested(sae_id=sae_id, source="import", path=path, **more)  # type: ignore[arg-type]


def completed(at: int, sae_id: str = ID) -> ev.DownloadCompleted:
    return ev.DownloadCompleted(
        request_position=at,
        sae_id=sae_id,
        source="import",
        files=(SaeFile("cfg.json", 10, "a" * 64), SaeFile("sae_weights.safetensors", 100, DIGEST)),
        sae=description(),
        weights_sha256=DIGEST,
        weights_files=HELD,
    )


def here() -> Step:
    return lambda at: [requested(), completed(at)]


def path_of(story: Story, sae_id: str = ID) -> str | None:
    return story.state.saes[sae_id].path


def test_the_id_follows_from_name_and_weights() -> None:
    given(STARTED).when(weighed()).then(requested())
    given(STARTED).when(weighed(ELSEWHERE)).then(requested(ELSEWHERE))
    assert import_id_of("/saes/a b/", digest=DIGEST) == "a-b-abcdef01"
    assert import_id_of(FOLDER, 5, DIGEST) == "demo-layer5-abcdef01"
    assert len(import_id_of("/" + "x" * 300, digest=DIGEST)) == 119
    given(STARTED).when(weighed(layer=5)).then(requested(sae_id="demo-layer5-abcdef01", layer=5))


def test_a_folder_without_an_sae_is_named_by_its_path() -> None:
    given(STARTED).when(Import(path=FOLDER)).then(requested(sae_id=IMPORTED))


def test_the_same_folder_again_is_there() -> None:
    story = given(STARTED, here()).when(weighed())
    story.then_types(ev.DownloadRequested, ev.DownloadCompleted)
    first, second = story.newest
    assert first == requested(reused=True)
    assert isinstance(second, ev.DownloadCompleted)
    assert second.reused
    assert path_of(story) == FOLDER


def test_an_older_record_of_that_path_keeps_its_id() -> None:
    old = given(STARTED, lambda at: [requested(sae_id=IMPORTED), completed(at, IMPORTED)])
    story = old.when(weighed())
    assert story.newest[0] == requested(sae_id=IMPORTED, reused=True)
    assert list(story.state.saes) == [IMPORTED]
    old.when(weighed(digest="1" * 64)).then(requested(sae_id="demo-11111111"))
    old.when(weighed(ELSEWHERE)).then(requested(ELSEWHERE))


def test_an_older_record_of_a_pickle() -> None:
    """What is on record is the digest of what was converted; the pickle's own is among its files."""
    files = (SaeFile("ae.pt", 9, DIGEST), SaeFile("ae.safetensors", 9, "c" * 64, converted_from="ae.pt"))
    converted = ev.DownloadCompleted(
        request_position=2, sae_id=IMPORTED, source="import", files=files, sae=description(), weights_sha256="c" * 64
    )
    story = given(STARTED, requested(sae_id=IMPORTED), converted).when(weighed())
    assert story.newest[0] == requested(sae_id=IMPORTED, reused=True)


def test_equal_weights_in_another_folder_of_that_name_are_the_same_sae() -> None:
    story = given(STARTED, here()).when(weighed(ELSEWHERE)).then(requested(ELSEWHERE))
    assert path_of(story) == FOLDER, "until the other one is read"
    assert [each.path for each in story.pending if isinstance(each, ImportEffect)] == [ELSEWHERE]
    done = story.when(completed(4))
    assert (list(done.state.saes), path_of(done)) == ([ID], ELSEWHERE)
    assert done.state.saes[ID].location.path == ELSEWHERE
    assert done.when(weighed(ELSEWHERE)).newest[0] == requested(ELSEWHERE, reused=True)
    failed = story.when(ev.DownloadFailed(request_position=4, sae_id=ID, error=BROKEN))
    assert (path_of(failed), failed.state.saes[ID].status, failed.pending) == (FOLDER, "cached", ())


def test_an_attached_one_stays_attached_meanwhile() -> None:
    on = given(STARTED, loaded(), here(), attaching(ID), attach_done(6, ID, weights_sha256=DIGEST, weights_files=HELD))
    story = on.when(weighed(ELSEWHERE)).then(requested(ELSEWHERE)).when(completed(8))
    assert story.attachments() == [(ID, "attached")]
    assert path_of(story) == ELSEWHERE
    coming = given(STARTED, loaded(), here(), attaching(ID))
    coming.when(weighed(ELSEWHERE)).refused("sae_in_use", sae_id=ID)


@pytest.mark.parametrize("path", [FOLDER, ELSEWHERE])
def test_one_that_runs_is_joined(path: str) -> None:
    story = given(STARTED, requested()).when(weighed(path)).then(requested(path, joined=2))
    assert path_of(story.when(completed(2))) == FOLDER


def test_the_older_log_of_imports_folds_as_before() -> None:
    story = given(STARTED, imported()).when(Import(path=FOLDER))
    assert story.newest[0] == requested(sae_id=IMPORTED, reused=True)
