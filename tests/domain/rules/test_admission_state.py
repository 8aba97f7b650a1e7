"""When a generation is admitted: the model, the moment, what a restart lost; and its one end."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, Detach, RequestedIntervention
from sae_actor.domain.messages import AdmitGeneration, Start
from tests.domain.dsl import (
    BROKEN,
    DIED,
    STARTED,
    A,
    B,
    Story,
    attach_done,
    attached_steered,
    cached,
    edit,
    given,
    loaded,
    loading,
    lost,
    restored,
)
from tests.domain.rules.test_admission import ask, intervention, shown

# — the model, the moment —


def test_a_model_must_be_loaded() -> None:
    given(STARTED).when(ask()).refused("model_not_loaded", status="none")
    given(STARTED, loading()).when(ask()).refused("model_not_loaded", status="loading")
    given(STARTED, loaded(), DIED).when(ask(baseline=True)).refused("not_ready")


@pytest.mark.parametrize(("expected", "ok"), [(7, False), (8, True), (9, True), (10, False), (0, False)])
def test_expect_position(expected: int, ok: bool) -> None:
    story = given(*attached_steered()).when(ask())  # state of 8, position 9
    again = story.when(replace(ask(expect_position=expected), generation_id="g2"))
    if ok:
        again.then_types(ev.GenerationStarted)
    else:
        again.refused("precondition_failed", expected=expected, position=8)


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True),
        ({"dtype": "bfloat16"}, False),
        ({"device": "cuda:0"}, False),
        ({"device": "cuda:0", "environment": {"deterministic_algorithms": True}}, True),
    ],
)
def test_deterministic_where_the_model_can_be(changes: dict[str, Any], can: bool) -> None:
    story = given(STARTED, loaded(**changes)).when(ask(deterministic=True))
    if can:
        (started,) = story.newest
        assert isinstance(started, ev.GenerationStarted)
        assert started.deterministic
    else:
        story.refused("sae_unsupported", param="sae.deterministic")


# — nothing unsteered goes out as steered —


def degraded() -> Story:
    return given(*attached_steered(), DIED, restored(2), lost(A, 6))


WANTING = [ask(), ask(steering=(edit(),)), ask(interventions=(RequestedIntervention(A),))]


@pytest.mark.parametrize("wanting", WANTING)
def test_what_was_lost_is_not_left_out_in_silence(wanting: AdmitGeneration) -> None:
    degraded().when(wanting).refused("not_ready", degraded=[A])
    given(*attached_steered(), DIED, restored(2)).when(wanting).refused("not_ready", degraded=[A])


@pytest.mark.parametrize("plain", [ask(baseline=True), ask(steering=())])
def test_unless_nothing_is_wanted_of_it(plain: AdmitGeneration) -> None:
    assert intervention(degraded().when(plain)) == ()


def test_until_someone_attaches_or_detaches() -> None:
    assert intervention(degraded().when(Detach(sae_id=A)).when(ask())) == ()
    attaching = degraded().when(Attach(sae_id=A))
    attaching.when(ask()).refused("not_ready")
    assert shown(attaching.when(attach_done(attaching.position)).when(ask())) == [(A, "steer", ())]


def test_an_attach_that_is_under_way_does_not_hold_up_texts() -> None:
    story = given(*attached_steered(), cached("b")).when(Attach(sae_id=B, replace=True))
    assert shown(story.when(ask())) == [(A, "steer", (3,))]
    first = given(STARTED, loaded(), cached()).when(Attach(sae_id=A))
    assert intervention(first.when(ask())) == ()


# — the end —


def finished(**more: Any) -> ev.GenerationFinished:
    return ev.GenerationFinished(
        generation_id="g1", started_position=9, finish_reason="stop", intervention_sha256="x", **more
    )


def test_a_text_ends_once() -> None:
    story = given(*attached_steered()).when(ask()).when(finished()).then(finished())
    assert story.state.generations == {}
    story.when(finished()).nothing_happens()
    given(STARTED).when(finished(error=BROKEN)).nothing_happens()


@pytest.mark.parametrize("last", [DIED, ev.ActorStopped()])
def test_a_text_cut_off_is_closed_at_the_next_start(last: ev.Payload) -> None:
    running = given(*attached_steered()).when(ask())
    digest = running.state.generations["g1"].intervention_sha256
    story = (running if last is DIED else running.and_then(last)).when(Start(version="2"))
    assert story.newest[:2] == (
        ev.ActorStarted(version="2"),
        ev.GenerationFinished(
            generation_id="g1", started_position=9, finish_reason="interrupted", intervention_sha256=digest
        ),
    )
    assert story.state.generations == {}


def test_only_by_the_model_that_the_prompt_was_read_for() -> None:
    story = given(STARTED, loaded())  # 2–3
    story.when(ask(model_position=2)).then_types(ev.GenerationStarted)
    story.when(ask(model_position=1)).refused("model_not_loaded", status="loaded")
    story.and_then(loaded("org/other")).when(ask(model_position=2)).refused("model_not_loaded", status="loaded")
    back = story.and_then(DIED, restored(2))
    back.when(ask(model_position=2)).then_types(ev.GenerationStarted)
