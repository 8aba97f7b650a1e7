"""LoadModel and UnloadModel: replaced, joined, reused, cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, Detach, LoadModel, UnloadModel
from sae_actor.domain.effects import LoadModelEffect
from sae_actor.domain.events import Problem
from sae_actor.domain.pending import pending, residents
from sae_actor.domain.reports import EffectDone
from tests.domain.dsl import (
    BROKEN,
    MODEL,
    STARTED,
    A,
    attached,
    attaching,
    cached,
    facts,
    given,
    loaded,
    loading,
)

LOAD = LoadModel(model=MODEL)
OTHER = LoadModel(model="org/other")


def requested(model: str = MODEL, *, joined: int | None = None, reused: bool = False) -> ev.ModelLoadRequested:
    return ev.ModelLoadRequested(
        model=model, revision="main", dtype="auto", device="auto", joined=joined, reused=reused
    )


def test_a_load_is_owed_until_it_is_reported() -> None:
    story = given(STARTED).when(LOAD).then(requested()).owes(("load_model", 2))
    assert story.open_commands() == {"c2"}
    report = ev.ModelLoaded(request_position=2, model=facts())
    story = story.when(report).then(report).owes()
    assert story.open_commands() == set()
    assert story.state.model is not None
    assert (story.state.model.status, story.state.model.restored) == ("loaded", False)


def test_a_load_that_fails_leaves_no_model_and_may_be_tried_again() -> None:
    report = ev.ModelLoadFailed(request_position=2, error=BROKEN)
    story = given(STARTED, loading()).when(report).then(report).owes()
    assert story.open_commands() == set()
    assert story.state.model is not None
    assert story.state.model.status == "error"
    assert residents(story.state).model is None
    story.when(Attach(sae_id=A)).refused("sae_not_found")
    story.when(LOAD).then(requested()).owes(("load_model", 4))


def test_the_model_that_is_there_is_reused() -> None:
    story = given(STARTED, loaded()).when(LOAD)
    story.then(requested(reused=True), ev.ModelLoaded(request_position=4, model=facts(), reused=True)).owes()
    assert story.open_commands() == set()
    assert story.state.revision == 3, "a load of the same model changes nothing"


def test_also_while_an_sae_is_attached() -> None:
    given(STARTED, loaded(), cached(), attached()).when(LOAD).then_types(ev.ModelLoadRequested, ev.ModelLoaded)


def test_a_load_of_the_same_model_joins_the_one_that_runs() -> None:
    story = given(STARTED, loading()).when(LOAD).then(requested(joined=2)).owes(("load_model", 2))
    assert story.open_commands() == {"c2", "c3"}
    assert story.when(ev.ModelLoaded(request_position=2, model=facts())).open_commands() == set()


def test_what_is_to_be_quantised_is_recorded_and_owed() -> None:
    story = given(STARTED).when(LoadModel(model=MODEL, quantization="nf4"))
    asked = ev.ModelLoadRequested(model=MODEL, revision="main", dtype="auto", device="auto", quantization="nf4")
    story = story.then(asked).owes(("load_model", 2))
    assert story.state.model is not None
    assert story.state.model.quantization == "nf4"
    (owed,) = pending(story.state)
    assert isinstance(owed, LoadModelEffect)
    assert owed.quantization == "nf4"
    story.when(LoadModel(model=MODEL, quantization="nf4")).then_types(ev.ModelLoadRequested).owes(("load_model", 2))
    story.when(LOAD).then_types(ev.ModelLoadRequested, ev.ModelLoadFailed).owes(("load_model", 3))


def test_a_command_without_it_is_the_one_of_before() -> None:
    """Its digest is that of a version that did not know the field."""
    assert LOAD.digest() == "57a14544697edffc5f9e2e512a3f4b3c8ce9461a2b0bab1babd07aa040d2a298"
    assert LoadModel(model=MODEL, quantization="int8").digest() != LOAD.digest()


@pytest.mark.parametrize(
    "field", [{"revision": "v2"}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"quantization": "int8"}]
)
def test_the_same_model_means_all_that_was_asked(field: dict[str, Any]) -> None:
    story = given(STARTED, loaded()).when(LoadModel(model=MODEL, **field)).then_types(ev.ModelLoadRequested)
    assert story.owes(("load_model", 4)).state.model is not None


def test_another_model_replaces_the_one_that_is_there() -> None:
    story = given(STARTED, loaded()).when(OTHER).then(requested("org/other")).owes(("load_model", 4))
    assert residents(story.state).model == 4


def test_another_load_ends_the_one_that_runs() -> None:
    story = given(STARTED, loading()).when(OTHER)
    error = Problem(code="model_load_failed", detail="another model was asked for")
    story.then(requested("org/other"), ev.ModelLoadFailed(request_position=2, error=error)).owes(("load_model", 3))
    assert story.open_commands() == {"c3"}
    late = ev.ModelLoaded(request_position=2, model=facts())
    story.when(late).nothing_happens().owes(("load_model", 3))
    story.when(ev.ModelLoadFailed(request_position=2, error=BROKEN)).nothing_happens()


@pytest.mark.parametrize("command", [OTHER, UnloadModel()])
def test_not_while_something_is_attached(command: LoadModel | UnloadModel) -> None:
    ready = given(STARTED, loaded(), cached())
    ready.and_then(attaching()).when(command).refused("sae_in_use", sae_id=A)
    ready.and_then(attached()).when(command).refused("sae_in_use", sae_id=A)
    leaving = ready.and_then(attached()).when(Detach(sae_id=A))
    leaving.when(command).refused("sae_in_use", sae_id=A)
    freed = ev.SaeDetached(request_position=8, attach_position=6, sae_id=A, freed_bytes=1)
    assert leaving.when(freed).when(command).newest


def test_unload() -> None:
    story = given(STARTED, loaded()).when(UnloadModel()).then(ev.ModelUnloaded(model_id=MODEL)).owes()
    assert (story.state.model, residents(story.state).model) == (None, None)
    assert story.open_commands() == set()
    story.when(UnloadModel()).refused("model_not_loaded")


def test_unload_during_a_load_cancels_it() -> None:
    story = given(STARTED, loading()).when(UnloadModel())
    error = Problem(code="model_load_failed", detail="the load was cancelled by UnloadModel")
    story.then(ev.ModelUnloaded(model_id=MODEL), ev.ModelLoadFailed(request_position=2, error=error)).owes()
    assert (story.state.model, story.open_commands()) == (None, set())
    story.when(ev.ModelLoaded(request_position=2, model=facts())).nothing_happens()


def test_a_second_report_changes_nothing() -> None:
    story = given(STARTED, loaded())
    story.when(ev.ModelLoaded(request_position=2, model=facts(num_layers=99))).nothing_happens()
    story.when(ev.ModelLoadFailed(request_position=2, error=BROKEN)).nothing_happens()
    (effect,) = given(STARTED, loading()).pending
    given(STARTED).when(EffectDone(effect, facts())).nothing_happens()


def test_a_lost_device_is_put_on_record() -> None:
    story = given(STARTED, loaded()).when(ev.GpuLost(detail="gone")).then(ev.GpuLost(detail="gone"))
    assert story.state.running, "what the process dies under is counted at the next start"
