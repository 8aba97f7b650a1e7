"""Starts and stops: what is wanted again, what is counted, what is given up, what stays lost."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, Delete, Detach, Download, LoadModel, UnloadModel
from sae_actor.domain.events import Problem
from sae_actor.domain.messages import Start, Stop
from sae_actor.domain.pending import residents
from sae_actor.domain.rules.models import missing
from sae_actor.domain.views.resources import degraded_view, waiting_for
from tests.domain.dsl import (
    BROKEN,
    MODEL,
    REPOSITORY,
    STARTED,
    A,
    B,
    Step,
    Story,
    attach_done,
    attached,
    attached_steered,
    attaching,
    cached,
    completed,
    downloading,
    edit,
    facts,
    given,
    loaded,
    loading,
    lost,
    restored,
)

START = Start(version="2")
FRESH = ev.ActorStarted(version="2")
FORCE = Download(repository_id=REPOSITORY, path="a", force=True)


def interrupted(effect: str, at: int, attempt: int = 1, sae_id: str | None = None) -> ev.EffectInterrupted:
    return ev.EffectInterrupted(effect=effect, request_position=at, attempt=attempt, sae_id=sae_id)  # type: ignore[arg-type]


# — everything as it was —


def test_what_was_there_is_wanted_again() -> None:
    before = given(*attached_steered())
    story = before.when(START).then(FRESH).owes(("load_model", 2))
    assert (story.attachments(), story.state.attached) == ([(A, "attaching")], ())
    assert len(waiting_for(story.state)) == 2
    story = story.when(ev.ModelLoaded(request_position=2, model=facts()))
    story.then(ev.ModelLoaded(request_position=2, model=facts(), restored=True)).owes(("attach", 6))
    story = story.when(attach_done(6)).then(attach_done(6, steering=(edit(),), restored=True)).owes()
    assert (waiting_for(story.state), degraded_view(story.state)) == ([], ())
    now, then = story.attachment(), before.attachment()
    assert (now.steering, now.attached_at, now.request_position) == (then.steering, then.attached_at, 6)


def test_in_the_order_of_the_log() -> None:
    two = ev.ActorStarted(version="1", max_attachments=2)
    story = given(two, loaded(), cached("a"), cached("b"), attached(B, 2), attached(A))
    story = story.when(Start(version="2", max_attachments=2)).and_then(restored(2)).owes(("attach", 8))
    assert story.when(attach_done(8, B, 2)).owes(("attach", 10)).when(attach_done(10)).attachments() == [
        (B, "attached"),
        (A, "attached"),
    ]


def test_what_was_attached_comes_back_also_where_fewer_are_allowed_now() -> None:
    two = ev.ActorStarted(version="1", max_attachments=2)
    story = given(two, loaded(), cached("a"), cached("b"), attached(A), attached(B, 2)).when(START)
    story = story.and_then(restored(2, a=8, b=10))
    assert len(story.state.attached) == 2
    story.when(Detach(sae_id=A)).when(Attach(sae_id=A)).refused("sae_already_attached")


def test_a_stop_is_on_record_and_nothing_is_owed_to_blame() -> None:
    stopped = given(STARTED, loading()).when(Stop("signal")).then(ev.ActorStopped(reason="signal"))
    assert not stopped.state.running
    assert waiting_for(stopped.state)
    story = stopped.when(START).then(FRESH).owes(("load_model", 2))
    assert story.open_commands() == {"c2"}


def test_what_was_not_restored_is_not_called_so() -> None:
    story = given(STARTED, loading()).when(START).when(ev.ModelLoaded(request_position=2, model=facts()))
    story.then(ev.ModelLoaded(request_position=2, model=facts(), restored=False))
    story = given(STARTED, loaded(), cached(), attaching()).when(START).and_then(restored(2)).when(attach_done(6))
    story.then(attach_done(6, restored=False))
    assert story.open_commands() == set()


# — deaths are counted —

UNDER_WAY: list[tuple[Step, str, int, str | None]] = [
    (loading("org/other"), "load_model", 6, None),
    (downloading("b"), "download", 6, B),
    (ev.DownloadRequested(sae_id="x", source="import", path="/x"), "import", 6, "x"),
    (attaching(), "attach", 6, A),
    (ev.DeleteRequested(sae_id=A), "delete", 6, A),
]


@pytest.mark.parametrize(("step", "effect", "at", "sae_id"), UNDER_WAY)
def test_an_intent_cut_off_is_run_again_and_counted(step: Step, effect: str, at: int, sae_id: str | None) -> None:
    story = given(STARTED, loaded(), cached(), step)
    for attempt in (1, 2):
        story = story.when(START)
        assert story.newest == (FRESH, interrupted(effect, at, attempt, sae_id))
        assert story.open_commands() == {"c6"}
        if effect != "load_model":
            story = story.and_then(restored(2))
        assert (effect, at) in [(each.name, each.request_position) for each in story.pending]


@pytest.mark.parametrize(("step", "effect", "at", "sae_id"), UNDER_WAY)
def test_the_third_death_in_a_row_gives_it_up(step: Step, effect: str, at: int, sae_id: str | None) -> None:
    story = given(STARTED, loaded(), cached(), step)
    for _ in range(3):
        story = story.when(START)
        last = story.newest
        if effect != "load_model":
            story = story.and_then(restored(2))
    assert last[:2] == (FRESH, interrupted(effect, at, 3, sae_id))
    (end,) = last[2:]
    error = getattr(end, "error", None)
    assert error == Problem(code="internal", detail=f"the process ended 3 times during this {effect}")
    assert story.open_commands() == set()
    assert at not in [each.request_position for each in story.pending]
    again = story.when(START)
    assert not any(isinstance(each, ev.EffectInterrupted) and each.request_position == at for each in again.newest)


def test_a_detach_that_is_given_up_is_done_the_memory_went_with_the_process() -> None:
    story = given(*attached_steered(), ev.DetachRequested(sae_id=A))
    for _ in range(3):
        story = story.when(START)
    gone = ev.SaeDetached(request_position=9, attach_position=6, sae_id=A, freed_bytes=0)
    assert story.newest == (FRESH, interrupted("load_model", 2, 2), interrupted("detach", 9, 3, A), gone)
    assert (story.attachments(), story.open_commands()) == ([], set())


def test_stops_in_order_do_not_count() -> None:
    story = given(STARTED, loading())
    for _ in range(5):
        story = story.when(Stop()).when(START).then(FRESH).owes(("load_model", 2))
    story.when(START).then(FRESH, interrupted("load_model", 2, 1))


def test_an_orderly_failure_ends_the_row() -> None:
    story = given(*attached_steered())
    story = story.when(START).and_then(restored(2)).when(START).and_then(restored(2))  # one death in the attach
    assert story.state.attachments[0].attempts == 1
    story = story.when(lost(A, 6)).when(START)
    assert story.state.attachments[0].attempts == 0
    model = given(STARTED, loaded(), FRESH).when(START)
    assert model.newest[1] == interrupted("load_model", 2, 1)
    failed = model.when(ev.ModelLoadFailed(request_position=2, error=BROKEN)).when(START).when(START)
    assert failed.newest[1] == interrupted("load_model", 2, 1)


def test_success_ends_the_row() -> None:
    story = given(*attached_steered()).when(START).when(START).and_then(restored(2)).when(START)
    assert story.newest == (FRESH, interrupted("attach", 6, 1, A))
    story = story.and_then(restored(2, a=6)).when(START).then(FRESH)
    assert story.state.attachments[0].attempts == 0


def test_the_row_goes_on_from_the_first_attach_to_its_restarts() -> None:
    """An SAE whose attach kills the process is given up, whoever asked first."""
    story = given(*attached_steered()).when(START)
    for attempt in (1, 2, 3):
        story = story.and_then(ev.ModelLoaded(request_position=2, model=facts(), restored=True)).when(START)
        assert story.newest[1] == interrupted("attach", 6, attempt, A)
    assert isinstance(story.newest[2], ev.AttachFailed)
    assert story.newest[2].restored
    story = story.and_then(restored(2)).owes()
    assert (story.attachments(), waiting_for(story.state)) == ([(A, "failed")], [])
    assert [each.sae_id for each in degraded_view(story.state)] == [A]
    assert story.when(START).and_then(restored(2)).owes().attachments() == [(A, "failed")], "not tried again"


def test_a_model_that_kills_the_process_takes_its_saes_along() -> None:
    story = given(*attached_steered()).when(START)
    for _ in range(3):
        story = story.when(START)
    without = Problem(code="model_not_loaded", detail="the model could not be loaded")
    assert story.newest[1] == interrupted("load_model", 2, 3)
    assert [type(each) for each in story.newest[2:]] == [ev.ModelLoadFailed, ev.AttachFailed]
    assert story.newest[3] == ev.AttachFailed(request_position=6, sae_id=A, error=without, restored=True)
    assert waiting_for(story.state) == []
    assert [each.sae_id for each in degraded_view(story.state)] == [None, A]
    again = story.when(START).then(FRESH).owes()
    assert (waiting_for(again.state), residents(again.state).model) == ([], None)


# — what could not be brought back —


def without_model() -> Story:
    story = given(*attached_steered()).when(START)
    return story.when(ev.ModelLoadFailed(request_position=2, error=BROKEN))


def test_a_model_that_cannot_be_restored() -> None:
    story = without_model()
    without = Problem(code="model_not_loaded", detail="the model could not be loaded")
    story.then(
        ev.ModelLoadFailed(request_position=2, error=BROKEN, restored=True),
        ev.AttachFailed(request_position=6, sae_id=A, error=without, restored=True),
    ).owes()
    assert (story.attachments(), waiting_for(story.state)) == ([(A, "failed")], [])
    retried = story.when(START).then(FRESH).owes(("load_model", 2))
    assert retried.attachments() == [(A, "attaching")]
    back = retried.when(ev.ModelLoaded(request_position=2, model=facts())).when(attach_done(6))
    assert back.attachment().steering == (edit(),)


def test_an_sae_that_cannot_be_restored_is_tried_again_at_the_next_start() -> None:
    story = given(*attached_steered()).when(START).and_then(restored(2)).when(lost(A, 6)).then(lost(A, 6)).owes()
    assert [(a.sae_id, a.error) for a in story.state.degraded] == [(A, BROKEN)]
    story = story.when(START).and_then(restored(2)).owes(("attach", 6)).when(attach_done(6))
    assert (story.attachment().steering, degraded_view(story.state)) == ((edit(),), ())


def lost_a() -> Story:
    return given(*attached_steered(), cached("b")).when(START).and_then(restored(2), lost(A, 6))


def test_not_where_another_has_taken_the_place() -> None:
    story = lost_a().when(Attach(sae_id=B)).when(START).and_then(restored(2))
    assert story.attachments() == [(A, "failed"), (B, "attaching")]
    done = story.when(attach_done(story.state.attachments[1].request_position, B))
    assert done.attachments() == [(B, "attached")]


def test_not_beside_a_new_attach_of_the_same() -> None:
    two = Start(version="2", max_attachments=2)
    story = lost_a().when(two).and_then(restored(2), lost(A, 6)).when(Attach(sae_id=A)).when(two)
    assert story.attachments() == [(A, "failed"), (A, "attaching")]


def test_not_on_another_model() -> None:
    story = without_model().when(LoadModel(model="org/other"))
    story = story.and_then(ev.ModelLoaded(request_position=story.position, model=facts(model_id="org/other")))
    assert story.when(START).attachments() == [(A, "failed")]
    assert waiting_for(story.and_then(FRESH, restored(story.position - 1)).state) == []


def test_not_without_a_model() -> None:
    story = lost_a().when(UnloadModel()).when(START).then(FRESH).owes()
    assert (story.attachments(), waiting_for(story.state)) == ([(A, "failed")], [])
    story.when(LoadModel(model=MODEL)).then_types(ev.ModelLoadRequested)


def test_not_with_other_weights() -> None:
    story = lost_a().when(FORCE)
    downloading_still = story.when(START)
    assert downloading_still.attachments() == [(A, "failed")]
    same = story.when(completed(story.position)).when(START)
    assert same.attachments() == [(A, "attaching")]
    moved = completed(story.position)
    other = ev.DownloadCompleted(
        request_position=moved.request_position, sae_id=A, files=moved.files, sae=moved.sae, weights_sha256="other"
    )
    assert story.when(other).when(START).attachments() == [(A, "failed")]


def test_not_while_it_is_being_deleted() -> None:
    story = lost_a().when(Delete(sae_id=A)).when(START)
    assert story.attachments() == [(A, "failed")]
    done = story.when(ev.SaeDeleted(request_position=14, sae_id=A, freed_bytes=1)).then_types(ev.SaeDeleted)
    assert (done.attachments(), degraded_view(done.state)) == ([], ())


def test_late_reports_of_an_earlier_life_are_told_by_their_request() -> None:
    story = given(*attached_steered()).when(START).and_then(restored(2)).when(Detach(sae_id=A))
    story.when(attach_done(6)).nothing_happens()
    story.when(lost(A, 6)).nothing_happens()
    story.when(ev.ModelLoaded(request_position=2, model=facts())).nothing_happens()


def test_a_new_start_brings_its_settings() -> None:
    story = given(STARTED).when(Start(version="2", max_attachments=3, drain_seconds=0.5))
    assert (story.state.max_attachments, story.state.drain_seconds) == (3, 0.5)


# — the model of the settings —


@pytest.mark.parametrize(
    ("wanted", "is_missing"),
    [
        ({}, False),
        ({"model": "org/other"}, True),
        ({"dtype": "bfloat16"}, True),
        ({"revision": "v2"}, True),
        ({"device": "cpu"}, True),
        ({"quantization": "nf4"}, True),
    ],
)
def test_the_model_of_the_settings_is_missing_where_the_log_has_another(
    wanted: dict[str, Any], is_missing: bool
) -> None:
    model = LoadModel(**{"model": MODEL, **wanted})
    state = given(STARTED, loaded()).when(Start(version="2", model=model)).then(FRESH).state
    assert missing(model, state) == (model if is_missing else None)
    assert missing(model, given().state) == model
    assert missing(None, given().state) is None


def test_what_a_command_chose_is_not_missing() -> None:
    chosen = ev.ModelLoadRequested(model=MODEL, revision="v2", dtype="bfloat16", device="cpu")
    state = given(STARTED, chosen).state
    assert missing(LoadModel(model=MODEL), state) is None
    assert missing(LoadModel(model=MODEL, dtype="bfloat16"), state) is None


def test_a_model_that_failed_is_asked_for_again() -> None:
    failed = ev.ModelLoadFailed(request_position=2, error=BROKEN)
    assert missing(LoadModel(model=MODEL), given(STARTED, loading(), failed).state) == LoadModel(model=MODEL)


def test_no_start_for_another_model_than_the_one_with_an_sae() -> None:
    story = given(*attached_steered())
    other = Start(version="2", model=LoadModel(model=MODEL, dtype="bfloat16"))
    assert story.when(other).refused("sae_in_use").state == story.state
    story.when(Start(version="2", model=LoadModel(model=MODEL))).then(FRESH).owes(("load_model", 2))
