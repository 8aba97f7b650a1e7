"""Replace, move, detach and fault: how an SAE leaves, and what comes in its place."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, Detach, Steer
from sae_actor.domain.effects import DetachEffect
from sae_actor.domain.events import Problem
from sae_actor.domain.pending import residents
from sae_actor.domain.reports import EffectDone
from tests.domain.dsl import (
    BROKEN,
    DIED,
    STARTED,
    A,
    B,
    C,
    Step,
    Story,
    attach_done,
    attached,
    attached_steered,
    attaching,
    cached,
    edit,
    given,
    loaded,
    lost,
    restored,
)

STEERED: tuple[Step, ...] = (*attached_steered(), cached("b"), cached("c"))  # a: request 6; 8 events, then 9–12
TWO = ev.ActorStarted(version="1", max_attachments=2)
CANCELLED = Problem(code="sae_not_attached", detail="detached while it was being attached")


def detached(at: int, attach_at: int, sae_id: str = A, freed: int = 2300) -> ev.SaeDetached:
    return ev.SaeDetached(request_position=at, attach_position=attach_at, sae_id=sae_id, freed_bytes=freed)


def replaced(at: int, attach_at: int, sae_id: str = A) -> ev.SaeDetached:
    return ev.SaeDetached(
        request_position=at, attach_position=attach_at, sae_id=sae_id, freed_bytes=0, held_bytes=2300, reason="replaced"
    )


# — replace —


def test_replace_keeps_the_old_one_until_the_new_one_is_there() -> None:
    story = given(*STEERED).when(Attach(sae_id=B, replace=True)).then(attaching(B, replaces=(A,)))
    assert story.attachments() == [(A, "attached"), (B, "attaching")]
    assert residents(story.state).saes == (6, 13)
    story = story.when(attach_done(13, B)).then(replaced(13, 6), attach_done(13, B)).owes()
    assert (story.attachments(), story.open_commands()) == ([(B, "attached")], set())
    assert story.attachment(B).steering == (), "the steering of another SAE does not come along"
    assert residents(story.state).saes == (13,)


def test_a_replace_that_fails_leaves_the_old_one() -> None:
    story = given(*STEERED).when(Attach(sae_id=B, replace=True))
    failed = ev.AttachFailed(request_position=13, sae_id=B, error=BROKEN)
    story = story.when(failed).then(failed)
    assert (story.attachments(), story.open_commands()) == ([(A, "attached")], set())
    assert story.attachment().steering == (edit(),)


def test_with_nothing_there_replace_is_attach() -> None:
    given(STARTED, loaded(), cached()).when(Attach(sae_id=A, replace=True)).then(attaching())


def test_what_is_being_replaced_is_not_replaced_by_a_third() -> None:
    story = given(*STEERED).when(Attach(sae_id=B, replace=True))
    story.when(Attach(sae_id=C, replace=True)).refused("sae_in_use", sae_id=A)
    story.when(Attach(sae_id=A, layer=2, replace=True)).refused("sae_in_use", sae_id=A)
    story.when(Attach(sae_id=B, layer=2, replace=True)).refused("sae_in_use", sae_id=B)


def test_replace_takes_the_one_at_the_same_hook_point_else_the_first() -> None:
    room = given(TWO, loaded(), cached("a"), cached("b"), cached("c"), attached(A, 1), attached(B, 2))
    at_b = room.when(Attach(sae_id=C, layer=2, replace=True))
    assert isinstance(at_b.newest[0], ev.AttachRequested)
    assert at_b.newest[0].replaces == (B,)
    elsewhere = room.when(Attach(sae_id=C, layer=3, replace=True))
    assert isinstance(elsewhere.newest[0], ev.AttachRequested)
    assert elsewhere.newest[0].replaces == (A,)


def test_what_is_replaced_may_be_steered_and_detached_meanwhile() -> None:
    story = given(*STEERED).when(Attach(sae_id=B, replace=True))
    story.when(Steer(sae_id=A, features=())).then_types(ev.SteeringChanged)
    story = story.when(Detach(sae_id=A)).owes(("attach", 13), ("detach", 14))
    story = story.when(attach_done(13, B)).then(attach_done(13, B)).owes(("detach", 14))
    assert story.when(detached(14, 6)).attachments() == [(B, "attached")]


def test_detach_of_the_new_one_leaves_the_old_one() -> None:
    story = given(*STEERED).when(Attach(sae_id=B, replace=True)).when(Detach(sae_id=B))
    assert story.attachments() == [(A, "attached"), (B, "detaching")]
    assert story.when(detached(14, 13, B, 0)).attachments() == [(A, "attached")]


# — move —


def test_a_moved_sae_keeps_its_steering() -> None:
    story = given(*STEERED).when(Attach(sae_id=A, layer=2, replace=True)).then_types(ev.AttachRequested)
    assert story.attachments() == [(A, "attached"), (A, "attaching")]
    more = (edit(), edit(4))
    story = story.when(Steer(sae_id=A, features=more)).when(attach_done(13, layer=2))
    story.then(replaced(13, 6), attach_done(13, layer=2, steering=more)).owes()
    assert (story.attachments(), story.attachment().hook_point.layer) == ([(A, "attached")], 2)
    assert story.attachment().steering == more


def test_also_one_that_is_out_of_force() -> None:
    story = given(*STEERED).when(Steer(sae_id=A, features=(edit(),), enabled=False))
    story = story.when(Attach(sae_id=A, layer=2, replace=True)).when(attach_done(14, layer=2))
    assert (story.attachment().steering, story.attachment().enabled) == ((edit(),), False)


def test_detach_during_a_move_takes_both() -> None:
    story = given(*STEERED).when(Attach(sae_id=A, layer=2, replace=True)).when(Detach(sae_id=A))
    story.then(ev.DetachRequested(sae_id=A), ev.AttachFailed(request_position=13, sae_id=A, error=CANCELLED))
    assert (story.attachments(), story.open_commands()) == ([(A, "detaching")], {"c14"})
    (effect,) = story.owes(("detach", 14)).pending
    assert effect == DetachEffect(request_position=14, sae_id=A, attach_position=6)
    story.when(attach_done(13, layer=2)).nothing_happens()
    done = story.when(detached(14, 6)).then(detached(14, 6)).owes()
    assert (done.attachments(), done.open_commands()) == ([], set())


def test_a_crash_in_a_move_brings_the_old_place_back_first() -> None:
    story = given(*STEERED).when(Attach(sae_id=A, layer=2, replace=True)).and_then(DIED, restored(2))
    story.owes(("attach", 6))
    back = story.when(attach_done(6)).owes(("attach", 13))
    moved = back.when(attach_done(13, layer=2)).owes()
    assert (moved.attachments(), moved.attachment().steering) == ([(A, "attached")], (edit(),))
    failed = story.when(ev.AttachFailed(request_position=6, sae_id=A, error=BROKEN)).owes(("attach", 13))
    moved = failed.when(attach_done(13, layer=2))
    assert (moved.attachments(), moved.attachment().steering) == ([(A, "attached")], (edit(),))


# — detach —


def test_detach_takes_it_out_at_once_and_completes_when_it_is_free() -> None:
    story = given(*STEERED).when(Detach(sae_id=A)).then(ev.DetachRequested(sae_id=A)).owes(("detach", 13))
    assert (story.state.attached, story.attachments()) == ((), [(A, "detaching")])
    assert story.state.attachments[0].steering == ()
    assert residents(story.state).saes == (6,)
    story.when(Steer(sae_id=A, features=())).refused("sae_not_attached", sae_id=A)
    story.when(Detach(sae_id=A)).refused("sae_not_attached", sae_id=A)
    story.when(Attach(sae_id=B)).refused("sae_already_attached", sae_id=A)
    done = story.when(detached(13, 6)).then(detached(13, 6)).owes()
    assert (done.attachments(), done.open_commands(), residents(done.state).saes) == ([], set(), ())
    done.when(detached(13, 6)).nothing_happens()
    done.when(Attach(sae_id=B)).then_types(ev.AttachRequested)


def test_detach_of_what_is_not_attached() -> None:
    given(STARTED, loaded(), cached()).when(Detach(sae_id=A)).refused("sae_not_attached", sae_id=A)
    given(STARTED, loaded()).when(Detach(sae_id=A)).refused("sae_not_found", sae_id=A)


def test_detach_while_attaching_ends_the_attach() -> None:
    story = given(STARTED, loaded(), cached(), attaching()).when(Detach(sae_id=A))
    story.then(ev.DetachRequested(sae_id=A), ev.AttachFailed(request_position=6, sae_id=A, error=CANCELLED))
    assert (story.open_commands(), story.attachments()) == ({"c7"}, [(A, "detaching")])
    story.owes(("detach", 7)).when(attach_done(6)).nothing_happens()
    assert story.when(detached(7, 6)).open_commands() == set()


def test_detach_while_it_is_brought_back() -> None:
    story = given(*STEERED, DIED).when(Detach(sae_id=A)).then(ev.DetachRequested(sae_id=A))
    story.owes(("load_model", 2), ("detach", 14))


def test_a_detach_report_of_another_request_is_late() -> None:
    story = given(*STEERED).when(Detach(sae_id=A))
    (effect,) = story.pending
    story.when(EffectDone(replace(effect, request_position=12), 1)).nothing_happens()
    given(*STEERED).when(EffectDone(effect, 1)).nothing_happens()
    story.when(EffectDone(effect, 1)).then_types(ev.SaeDetached)


# — what is lost —


def degraded() -> Story:
    """a (request 6) could not be brought back."""
    return given(*STEERED, DIED, restored(2), lost(A, 6))


def test_detach_of_what_was_lost_completes_at_once() -> None:
    story = degraded().when(Detach(sae_id=A))
    story.then(ev.DetachRequested(sae_id=A), detached(16, 6, freed=0)).owes()
    assert (story.attachments(), story.open_commands()) == ([], set())


def test_a_new_attach_clears_what_was_lost_only_when_it_is_there() -> None:
    for sae_id in (A, B):
        story = degraded().when(Attach(sae_id=sae_id)).then_types(ev.AttachRequested).owes(("attach", 16))
        assert [a.sae_id for a in story.state.degraded] == [A]
        failed = story.when(ev.AttachFailed(request_position=16, sae_id=sae_id, error=BROKEN))
        assert (failed.attachments(), failed.open_commands()) == ([(A, "failed")], set())
        assert story.when(attach_done(16, sae_id)).attachments() == [(sae_id, "attached")]


def test_detach_of_the_new_attach_of_what_was_lost() -> None:
    story = degraded().when(Attach(sae_id=A)).when(Detach(sae_id=A)).owes(("detach", 17))
    assert (story.attachments(), story.open_commands()) == ([(A, "detaching")], {"c17"})
    assert story.when(detached(17, 16, freed=0)).attachments() == []


def test_any_detach_says_that_someone_has_seen_what_was_lost() -> None:
    room = given(TWO, loaded(), cached("a"), cached("b"), attached(A), attached(B, 2))
    story = room.and_then(ev.ActorStarted(version="1", max_attachments=2), restored(2), lost(A, 8))
    story = story.and_then(attach_done(10, B, 2, restored=True))
    assert story.attachments() == [(A, "failed"), (B, "attached")]
    assert story.when(Detach(sae_id=B)).attachments() == [(B, "detaching")]


# — fault —


def test_an_sae_that_cannot_be_computed_is_taken_out() -> None:
    report = ev.HookFaulted(sae_id=A, request_position=6, error=BROKEN)
    story = given(*STEERED).when(report)
    gone = ev.SaeDetached(
        request_position=6, attach_position=6, sae_id=A, freed_bytes=0, held_bytes=2300, reason="fault"
    )
    story.then(report, gone).owes()
    assert (story.attachments(), residents(story.state).saes) == ([], ())
    story.when(report).nothing_happens()


@pytest.mark.parametrize("step", [ev.DetachRequested(sae_id=A), DIED])
def test_a_fault_of_what_is_on_its_way_is_late(step: Step) -> None:
    given(*STEERED, step).when(ev.HookFaulted(sae_id=A, request_position=6, error=BROKEN)).nothing_happens()
