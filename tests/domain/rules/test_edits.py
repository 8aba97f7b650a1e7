"""Steer, and the rules of one set of edits."""

from __future__ import annotations

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Steer
from sae_actor.domain.refs import Edit, Method, Positions, Span, Unit, When
from sae_actor.domain.rules.edits import checked
from sae_actor.errors import BadRequestError, ConflictingEditsError, FeatureOutOfRangeError
from tests.domain.dsl import (
    STARTED,
    A,
    B,
    attached,
    attached_steered,
    attaching,
    cached,
    description,
    edit,
    given,
    loaded,
)

SAE = description(d_sae=32)


def test_the_list_replaces_what_was_set() -> None:
    story = given(*attached_steered())
    before = story.state.revision
    for features in ((edit(4), edit(5)), (edit(4), edit(5)), ()):
        story = story.when(Steer(sae_id=A, features=features))
        story.then(ev.SteeringChanged(sae_id=A, features=features, enabled=True)).owes()
        assert story.attachment().steering == features
        assert story.state.revision > before
        before = story.state.revision
    assert story.open_commands() == set()
    story = story.when(Steer(sae_id=A, features=(edit(),), enabled=False))
    assert (story.attachment().enabled, story.attachment().position) == (False, story.position)


def test_only_what_is_attached_is_steered() -> None:
    ready = given(STARTED, loaded(), cached())
    ready.when(Steer(sae_id=A, features=())).refused("sae_not_attached", sae_id=A)
    ready.when(Steer(sae_id=B, features=())).refused("sae_not_found", sae_id=B)
    ready.and_then(attaching()).when(Steer(sae_id=A, features=())).refused("sae_not_attached")


def test_an_edit_may_name_its_sae_if_it_is_the_commands() -> None:
    story = given(STARTED, loaded(), cached(), attached())
    story = story.when(Steer(sae_id=A, features=(edit(sae_id=A),)))
    assert story.attachment().steering == (edit(),)
    story.when(Steer(sae_id=A, features=(edit(sae_id=B),))).refused("bad_request", param="sae_id")


def test_a_refused_steer_keeps_what_was_set() -> None:
    story = given(*attached_steered()).when(Steer(sae_id=A, features=(edit(32),)))
    story = story.refused("feature_out_of_range", feature=32, d_sae=32)
    assert story.attachment().steering == (edit(),)


@pytest.mark.parametrize("feature", [32, 2**31 - 1])
def test_a_feature_that_the_sae_has_not(feature: int) -> None:
    assert checked((edit(31),), A, SAE) == (edit(31),)
    with pytest.raises(FeatureOutOfRangeError):
        checked((edit(31), edit(feature)), A, SAE)


# — what is not built yet is refused by name —


def test_exclusions() -> None:
    assert checked((edit(exclude=("sink", "sink")),), A, SAE) == (edit(exclude=("sink",)),)
    kept = (edit(exclude=("special", "template", "sink"), positions=Span(role="user")),)
    assert checked(kept, A, SAE) == kept


@pytest.mark.parametrize("unit", ["unit", "max", "norm"])
def test_units(unit: Unit) -> None:
    with pytest.raises(BadRequestError, match=unit):
        checked((edit(unit=unit),), A, SAE)


def test_conditions() -> None:
    kept = (edit(when=When(31, 0.5)),)
    assert checked(kept, A, SAE) == kept
    with pytest.raises(FeatureOutOfRangeError, match="feature 32"):
        checked((edit(when=When(32, 0.5)),), A, SAE)
    with pytest.raises(ConflictingEditsError):  # the condition is no part of an edit's key
        checked((edit(when=When(1, 0.5)), edit(when=When(2, 0.5))), A, SAE)


# — contradictions —


def conflict(one: Edit, other: Edit) -> bool:
    try:
        checked((one, other), A, SAE)
    except ConflictingEditsError as error:
        return bool(error.fields == {"feature": one.feature})
    return False


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (edit(), edit(strength=2.0),
         "feature 3 has two edits with the method add at every position: send one, with the strength that you want"),
        (edit(method="set", positions="prompt"), edit(method="cap", positions="last_prompt"),
         "feature 3 has an edit with the method set and one with cap, at every position of the prompt and at the last "
         "position of the prompt, which can meet: only one of set, scale and cap can decide an activation"),
        (edit(method="cap", positions="prompt"), edit(method="cap"),
         "feature 3 has two edits with the method cap, at every position of the prompt and at every position, which "
         "can meet: only one of set, scale and cap can decide an activation"),
        (edit(method="set"), edit(method="scale"),
         "feature 3 has an edit with the method set and one with scale, at every position: only one of set, scale and "
         "cap can decide an activation"),
        (edit(when=When(1, 0.5)), edit(when=When(2, 0.5)),
         "feature 3 has two edits with the method add at every position; their conditions do not separate them: send "
         "one, with the strength that you want"),
    ],
)  # fmt: skip
def test_a_contradiction_is_told_in_words(one: Edit, other: Edit, told: str) -> None:
    story = given(*attached_steered()).when(Steer(sae_id=A, features=(one, other)))
    story.refused("conflicting_edits", feature=3)
    with pytest.raises(ConflictingEditsError) as refused:
        checked((one, other), A, SAE)
    assert refused.value.detail == told


@pytest.mark.parametrize("first", ["set", "scale", "cap"])
@pytest.mark.parametrize("second", ["set", "scale", "cap"])
def test_two_that_fix_the_activation(first: Method, second: Method) -> None:
    assert conflict(edit(method=first), edit(method=second))
    assert not conflict(edit(3, method=first), edit(4, method=second))
    assert not conflict(edit(method=first, positions="prompt"), edit(method=second, positions="generated"))


@pytest.mark.parametrize("method", ["add", "project", "set_projection"])
def test_others_may_stand_beside_each_other(method: Method) -> None:
    for other in ("add", "set", "scale", "cap", "project", "set_projection"):
        assert conflict(edit(method=method), edit(method=other)) is (method == other)
    assert not conflict(edit(method=method, positions="prompt"), edit(method=method, positions="all"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("prompt", "generated", False), ("last_prompt", "generated", False), ("last_prompt", "prompt", True),
        ("response", "prompt", True), ("response", "generated", True), ("all", "generated", True),
        (Span(tokens=(1, 2)), Span(tokens=(2, 3)), True), (Span(tokens=(1, 2)), Span(tokens=(3,)), False),
        (Span(from_=0, to=2), Span(from_=2), False), (Span(from_=0, to=3), Span(from_=2), True),
        (Span(to=2), Span(tokens=(1,)), True), (Span(tokens=(2,)), Span(to=2), False),
        (Span(from_=5), Span(to=5), False), (Span(from_=5), "generated", True), (Span(tokens=(0,)), "all", True),
        (Span(role="user"), Span(role="assistant"), False), (Span(role="user"), Span(role="user"), True),
        (Span(role="assistant"), "generated", False), (Span(role="assistant"), "prompt", True),
        (Span(role="user"), "last_prompt", True), (Span(role="user"), "response", True),
        (Span(role="system"), Span(tokens=(3,)), True), (Span(role="system"), Span(from_=3), True),
        (Span(role="system"), "all", True),
    ],
)  # fmt: skip
def test_only_where_they_meet(one: Positions, other: Positions, expected: bool) -> None:
    assert conflict(edit(method="set", positions=one), edit(method="cap", positions=other)) is expected
    assert conflict(edit(method="cap", positions=other), edit(method="set", positions=one)) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Span(tokens=(1, 2)), Span(tokens=(2, 1)), True), (Span(tokens=(1, 2)), Span(tokens=(2, 3)), False),
        (Span(to=5), Span(from_=0, to=5), True), (Span(to=5), Span(from_=1, to=5), False),
        (Span(to=5), Span(tokens=(0, 1)), False),
    ],
)  # fmt: skip
def test_one_key_twice_however_it_is_spelled(one: Positions, other: Positions, expected: bool) -> None:
    assert conflict(edit(positions=one), edit(positions=other)) is expected
