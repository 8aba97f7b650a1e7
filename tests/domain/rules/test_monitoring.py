"""What is monitored: set and taken back for an attached SAE, gone with the attachment, kept by restarts and moves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, Detach, Monitor
from sae_actor.domain.messages import AdmitGeneration
from sae_actor.domain.refs import Monitoring, intervention_sha256
from sae_actor.domain.views.resources import state_view
from sae_actor.domain.words import monitoring_in_words
from tests.domain.dsl import (
    BROKEN,
    DIED,
    STARTED,
    A,
    B,
    Story,
    attach_done,
    attached,
    attached_steered,
    cached,
    given,
    loaded,
    restored,
)

WATCHED = ev.MonitoringChanged(sae_id=A, enabled=True, features=(1, 2), top_k=5)
ASK = AdmitGeneration(
    generation_id="g",
    kind="completion",
    tokens_prompt=2,
    sampling=ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=4, seed=1),
)


def monitors(story: Story) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(shown) for shown in state_view(story.state).monitors]


def test_of_all_features_and_of_some() -> None:
    story = given(*attached_steered()).when(Monitor(sae_id=A, enabled=True))
    story.then(ev.MonitoringChanged(sae_id=A, enabled=True, features=None, top_k=10, exclude=("sink",)))
    assert monitors(story) == [{"sae_id": A, "features": None, "top_k": 10, "exclude": ("sink",), "position": 9}]
    assert (story.state.revision, story.attachment().position) == (9, 8)
    some = story.when(Monitor(sae_id=A, enabled=True, features=(2, 31, 2), top_k=1, exclude=()))
    some.then(ev.MonitoringChanged(sae_id=A, enabled=True, features=(2, 31), top_k=1))
    assert monitors(some) == [{"sae_id": A, "features": (2, 31), "top_k": 1, "exclude": (), "position": 10}]


def test_not_enabled_takes_it_back() -> None:
    story = given(*attached_steered(), WATCHED).when(Monitor(sae_id=A, enabled=False))
    assert story.then_types(ev.MonitoringChanged).attachment().monitoring is None
    assert monitors(story) == []
    assert story.state.revision == 10
    # What is off already may be taken back again: the command is on record.
    assert story.when(Monitor(sae_id=A, enabled=False)).then_types(ev.MonitoringChanged).state.revision == 11


def test_refusals() -> None:
    story = given(STARTED, loaded(), cached("a"))
    story.when(Monitor(sae_id=B, enabled=True)).refused("sae_not_found", sae_id=B)
    story.when(Monitor(sae_id=A, enabled=True)).refused("sae_not_attached", sae_id=A)
    there = story.and_then(attached())
    there.when(Monitor(sae_id=A, enabled=True, features=(1, 32))).refused(
        "feature_out_of_range", feature=32, d_sae=32, sae_id=A
    )


def test_it_is_in_no_intervention() -> None:
    before = given(*attached_steered()).when(ASK)
    after = given(*attached_steered(), WATCHED).when(ASK)
    assert before.newest == after.newest
    (started,) = after.newest
    assert isinstance(started, ev.GenerationStarted)
    assert started.watched == ()
    assert started.intervention_sha256 == intervention_sha256(started.intervention)


@pytest.mark.parametrize(
    "end",
    [
        ev.DetachRequested(sae_id=A),
        ev.SaeDetached(request_position=6, attach_position=6, sae_id=A, freed_bytes=1, reason="fault"),
    ],
    ids=["detached", "fault"],
)
def test_it_ends_with_the_attachment(end: ev.Payload) -> None:
    story = given(*attached_steered(), WATCHED, end)
    assert monitors(story) == []
    again = story.and_then(*[] if end.type != "DetachRequested" else [_gone(10)], attached())
    assert again.attachment().monitoring is None


def _gone(at: int) -> ev.SaeDetached:
    return ev.SaeDetached(request_position=at, attach_position=6, sae_id=A, freed_bytes=1)


def test_a_restart_keeps_it() -> None:
    died = given(*attached_steered(), WATCHED, DIED, restored(2))
    assert monitors(died) == []
    back = died.when(attach_done(6))
    (come,) = back.newest
    assert isinstance(come, ev.SaeAttached)
    assert (come.restored, come.monitoring) == (True, Monitoring(features=(1, 2), top_k=5))
    shown = {"sae_id": A, "features": (1, 2), "top_k": 5, "exclude": ()}
    assert monitors(back) == [{**shown, "position": back.position}]
    # What could not be brought back now may be brought back by the next start, with what was monitored.
    lost = ev.AttachFailed(request_position=6, sae_id=A, error=BROKEN, restored=True)
    later = died.and_then(lost, DIED, restored(2)).when(attach_done(6))
    assert later.attachment().monitoring == Monitoring(features=(1, 2), top_k=5)


def test_a_move_keeps_it_and_another_sae_does_not_inherit_it() -> None:
    story = given(STARTED, loaded(), cached("a"), cached("b"), attached(A), WATCHED)
    moving = story.when(Attach(sae_id=A, layer=2, replace=True))
    assert monitors(moving)[0]["features"] == (1, 2)
    moved = moving.when(attach_done(moving.position, layer=2))
    assert moved.attachment().monitoring == Monitoring(features=(1, 2), top_k=5)
    other = story.when(Attach(sae_id=B, replace=True))
    replaced = other.when(attach_done(other.position, B))
    assert replaced.attachment(B).monitoring is None
    assert monitors(replaced.when(Detach(sae_id=B))) == []


def in_words(monitoring: Monitoring) -> str:
    return monitoring_in_words(msgspec.to_builtins(monitoring))


def test_in_words() -> None:
    assert in_words(Monitoring(top_k=7)) == "the 7 largest activations"
    assert in_words(Monitoring(features=(3,))) == "the activation of feature 3"
    among = "the 2 largest activations among features 3, 5 and 9"
    assert in_words(Monitoring(features=(3, 5, 9), top_k=2)) == among
