"""Download, CancelDownload, Import and Delete."""

from __future__ import annotations

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import CancelDownload, Delete, Detach, Download, Import
from sae_actor.domain.effects import DeleteEffect, DownloadEffect, ImportEffect
from tests.domain.dsl import (
    BROKEN,
    FOLDER,
    IMPORTED,
    REPOSITORY,
    STARTED,
    A,
    B,
    attached,
    cached,
    completed,
    downloading,
    given,
    imported,
    loaded,
)

DOWNLOAD = Download(repository_id=REPOSITORY, path="a")
FORCE = Download(repository_id=REPOSITORY, path="a", force=True)


def requested(*, force: bool = False, joined: int | None = None, reused: bool = False) -> ev.DownloadRequested:
    return ev.DownloadRequested(
        sae_id=A, repository_id=REPOSITORY, revision="main", path="a", force=force, joined=joined, reused=reused
    )


# — download —


def test_a_download_is_owed_until_it_is_reported() -> None:
    story = given(STARTED).when(DOWNLOAD).then(requested()).owes(("download", 2))
    (effect,) = story.pending
    assert effect == DownloadEffect(
        request_position=2, sae_id=A, repository_id=REPOSITORY, revision="main", path="a", force=False
    )
    story = story.when(completed(2)).then(completed(2)).owes()
    record = story.state.saes[A]
    assert (record.status, record.commit, record.weights_sha256) == ("cached", "1" * 40, "weights of a")
    assert story.open_commands() == set()


def test_what_is_there_is_reused() -> None:
    story = given(STARTED, cached()).when(DOWNLOAD).then(requested(reused=True), completed(4, reused=True)).owes()
    assert (story.state.revision, story.open_commands()) == (3, set())


def test_a_running_download_is_joined_and_its_outcome_shared() -> None:
    story = given(STARTED, downloading()).when(DOWNLOAD).then(requested(joined=2)).owes(("download", 2))
    assert story.open_commands() == {"c2", "c3"}
    assert story.when(completed(2)).open_commands() == set()
    assert story.when(ev.DownloadFailed(request_position=2, sae_id=A, error=BROKEN)).open_commands() == set()


def test_a_failed_download_stays_as_error_and_is_taken_up_again() -> None:
    report = ev.DownloadFailed(request_position=2, sae_id=A, error=BROKEN)
    story = given(STARTED, downloading()).when(report).then(report).owes()
    assert (story.state.saes[A].status, story.state.saes[A].error) == ("error", BROKEN)
    again = story.when(DOWNLOAD).then(requested()).owes(("download", 4))
    assert again.state.saes[A].error is None
    again.when(report).nothing_happens()
    again.when(completed(2)).nothing_happens().owes(("download", 4))


def test_force_fetches_again_and_a_failure_keeps_what_was_there() -> None:
    story = given(STARTED, cached()).when(FORCE).then(requested(force=True)).owes(("download", 4))
    assert story.state.saes[A].status == "downloading"
    failed = story.when(ev.DownloadFailed(request_position=4, sae_id=A, error=BROKEN))
    assert (failed.state.saes[A].status, failed.state.saes[A].commit) == ("cached", "1" * 40)


def test_force_leaves_what_is_attached_running() -> None:
    story = given(STARTED, loaded(), cached(), attached())
    fetched = story.when(FORCE).then(requested(force=True))
    assert fetched.state.attachment(A) is not None
    story.when(Detach(sae_id=A)).when(FORCE).refused("sae_in_use", sae_id=A)


def test_created_at_is_the_first_time() -> None:
    story = given(STARTED, cached())
    first = story.state.saes[A].created_at
    assert story.when(FORCE).when(completed(4)).state.saes[A].created_at == first


# — cancel —


def test_a_cancelled_download_leaves_no_record() -> None:
    story = given(STARTED, downloading()).when(DOWNLOAD).when(CancelDownload(sae_id=A))
    story.then(ev.DownloadCancelled(request_position=2, sae_id=A)).owes()
    assert (story.state.saes, story.open_commands()) == ({}, set())
    story.when(completed(2)).nothing_happens()
    story.when(ev.DownloadFailed(request_position=2, sae_id=A, error=BROKEN)).nothing_happens()
    story.when(CancelDownload(sae_id=A)).refused("sae_not_found")


def test_a_cancelled_second_download_leaves_the_first() -> None:
    story = given(STARTED, cached()).when(FORCE).when(CancelDownload(sae_id=A)).owes()
    assert (story.state.saes[A].status, story.state.saes[A].commit) == ("cached", "1" * 40)


@pytest.mark.parametrize("sae_id", [A, B])
def test_with_nothing_to_cancel(sae_id: str) -> None:
    story = given(STARTED, cached()).when(CancelDownload(sae_id=sae_id))
    story.refused("sae_not_downloading" if sae_id == A else "sae_not_found", sae_id=sae_id)


def test_a_late_report_does_not_complete_a_new_download() -> None:
    story = given(STARTED, downloading()).when(CancelDownload(sae_id=A)).when(DOWNLOAD).owes(("download", 4))
    story.when(completed(2)).nothing_happens().owes(("download", 4))
    story.when(completed(4)).then(completed(4)).owes()


# — import —


def test_an_import() -> None:
    story = given(STARTED).when(Import(path=FOLDER))
    story.then(ev.DownloadRequested(sae_id=IMPORTED, source="import", path=FOLDER)).owes(("import", 2))
    assert story.pending == (ImportEffect(request_position=2, sae_id=IMPORTED, path=FOLDER),)
    assert story.state.commands["c2"].type == "Import"
    again = given(STARTED, imported()).when(Import(path=FOLDER))
    again.then_types(ev.DownloadRequested, ev.DownloadCompleted).owes()
    assert isinstance(again.newest[1], ev.DownloadCompleted)
    assert (again.newest[1].reused, again.newest[1].source) == (True, "import")


def test_a_running_import_is_joined() -> None:
    story = given(STARTED).when(Import(path=FOLDER)).when(Import(path=FOLDER)).owes(("import", 2))
    assert story.open_commands() == {"c2", "c3"}


# — delete —


def test_delete() -> None:
    story = given(STARTED, cached("a"), cached("b")).when(Delete(sae_id=A)).then(ev.DeleteRequested(sae_id=A))
    (effect,) = story.owes(("delete", 6)).pending
    assert isinstance(effect, DeleteEffect)
    assert [(kept.repository_id, kept.path) for kept in effect.kept] == [(REPOSITORY, "b")]
    story.when(Delete(sae_id=A)).refused("sae_in_use")
    report = ev.SaeDeleted(request_position=6, sae_id=A, freed_bytes=110)
    done = story.when(report).then(report).owes()
    assert (set(done.state.saes), done.open_commands()) == ({B}, set())
    done.when(Delete(sae_id=A)).refused("sae_not_found")
    done.when(report).nothing_happens()


def test_delete_that_fails_leaves_the_record() -> None:
    report = ev.DeleteFailed(request_position=4, sae_id=A, error=BROKEN)
    story = given(STARTED, cached()).when(Delete(sae_id=A)).when(report).then(report).owes()
    assert (story.state.saes[A].status, story.state.saes[A].error) == ("cached", BROKEN)
    story.when(report).nothing_happens()
    story.when(ev.SaeDeleted(request_position=4, sae_id=A, freed_bytes=1)).nothing_happens()


def test_a_failed_download_can_be_deleted() -> None:
    failed = ev.DownloadFailed(request_position=2, sae_id=A, error=BROKEN)
    given(STARTED, downloading(), failed).when(Delete(sae_id=A)).owes(("delete", 4))
