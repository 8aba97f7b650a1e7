"""What is different between two states."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.refs import Edit, Span
from sae_actor.domain.state import EMPTY
from sae_actor.domain.views.difference import difference, steering_difference
from sae_actor.domain.words import edit_in_words, ranges_in_words
from tests.domain.dsl import DIED, STARTED, A, B, attach_done, attached, cached, edit, given, loaded, restored

NOTHING: dict[str, Any] = {"model": {}, "saes": {"added": [], "removed": [], "changed": []}}
NOTHING["attachments"] = NOTHING["presets"] = NOTHING["saes"]
PLACE = (STARTED, loaded(), cached("a"), attached(A, steering=(edit(),)))


def test_nothing() -> None:
    state = given(*PLACE).state
    assert difference(state, state) == {"from": 8, "to": 8, **NOTHING}
    assert difference(EMPTY, EMPTY) == {"from": 0, "to": 0, **NOTHING}


def test_everything_came_and_went() -> None:
    state = given(*PLACE).state
    came, went = difference(EMPTY, state), difference(state, EMPTY)
    assert came["model"]["model_id"] == {"before": None, "after": "org/tiny"}
    assert came["model"]["commit"] == {"before": None, "after": "0" * 40}
    assert [each["sae_id"] for each in came["saes"]["added"]] == [A]
    assert came["attachments"]["added"][0]["steering"][0]["strength"] == 7.0
    assert went["model"]["model_id"] == {"before": "org/tiny", "after": None}
    assert went["saes"] == {"added": [], "removed": came["saes"]["added"], "changed": []}
    assert went["attachments"] == {"added": [], "removed": came["attachments"]["added"], "changed": []}


def test_a_restart_that_brings_everything_back_is_no_change() -> None:
    story = given(*PLACE)
    back = attach_done(6, device_bytes=9999, restored=True, steering=(edit(),))
    after = story.and_then(DIED, restored(2), back)
    found = difference(story.state, after.state)
    assert {key: found[key] for key in NOTHING} == NOTHING
    between = difference(story.state, story.and_then(DIED).state)
    assert between["model"]["status"] == {"before": "loaded", "after": "loading"}
    changes = between["attachments"]["changed"][0]["changes"]
    assert changes == {"status": {"before": "attached", "after": "attaching"}}


def test_edits() -> None:
    other = Edit(feature=3, strength=1.0, method="cap")
    later = Edit(feature=3, strength=1.0, positions=Span(tokens=(1,)))
    found = steering_difference((edit(), other), (later, edit(strength=8.0)))
    assert [each["positions"] for each in found["added"]] == [{"tokens": (1,)}]
    assert [each["method"] for each in found["removed"]] == ["cap"]
    assert [(pair["before"]["strength"], pair["after"]["strength"]) for pair in found["changed"]] == [(7.0, 8.0)]
    assert found["reordered"] is False
    turned = steering_difference((edit(), other), (other, edit()))
    assert turned == {"added": [], "removed": [], "changed": [], "reordered": True}


def test_steering_and_place_of_an_attachment() -> None:
    story = given(*PLACE)
    off = story.and_then(ev.SteeringChanged(sae_id=A, features=(edit(),), enabled=False))
    (changed,) = difference(story.state, off.state)["attachments"]["changed"]
    assert changed["changes"] == {"steering_enabled": {"before": True, "after": False}}
    assert changed["steering"] == {"added": [], "removed": [], "changed": [], "reordered": False}
    moved = story.and_then(ev.DetachRequested(sae_id=A))
    gone = ev.SaeDetached(request_position=9, attach_position=6, sae_id=A, freed_bytes=1)
    anew = moved.and_then(gone, attached(A, 2))
    (changed,) = difference(story.state, anew.state)["attachments"]["changed"]
    assert set(changed["changes"]) == {"hook_point", "attached_at"}
    assert [each["feature"] for each in changed["steering"]["removed"]] == [3]
    (changed,) = difference(story.state, moved.state)["attachments"]["changed"]
    assert changed["changes"]["status"] == {"before": "attached", "after": "detaching"}


def test_another_sae_and_new_files() -> None:
    story = given(*PLACE)
    more = story.and_then(cached("b"))
    found = difference(story.state, more.state)
    assert [each["sae_id"] for each in found["saes"]["added"]] == [B]
    assert found["attachments"] == NOTHING["attachments"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit(feature=3, strength=7.5, exclude=()), "feature 3: adds 7.5 times its decoder row, at every position"),
        (
            Edit(feature=3, strength=-1, method="cap", positions=Span(from_=1, to=9), exclude=()),
            "feature 3: caps its activation at -1, at positions 1 to 8",
        ),
        (
            Edit(feature=3, strength=0, method="scale", positions=Span(tokens=(0, 2)), exclude=()),
            "feature 3: takes its contribution out (activation times 0), at positions 0, 2",
        ),
        (
            Edit(feature=3, strength=2, method="scale", positions=Span(tokens=(4,)), exclude=()),
            "feature 3: multiplies its activation by 2, at position 4",
        ),
        (
            Edit(feature=3, strength=2, method="set", positions=Span(from_=2), exclude=()),
            "feature 3: sets its activation to 2, also where it is off, from position 2 on",
        ),
        (
            Edit(feature=3, strength=0, method="project", positions="prompt", exclude=()),
            "feature 3: takes its direction out (projection times 0), at every position of the prompt",
        ),
        (
            Edit(feature=3, strength=0.5, method="project", positions=Span(role="user"), exclude=()),
            "feature 3: multiplies the projection on its direction by 0.5, at the tokens of the user's messages",
        ),
        (
            Edit(feature=3, strength=0.5, method="set_projection", unit="norm", positions="last_prompt", exclude=()),
            "feature 3: sets the projection on its direction to 0.5, in units of the hook point's median norm, "
            "at the last position of the prompt",
        ),
    ],
)
def test_edits_in_words(edit: Edit, words: str) -> None:
    assert edit_in_words(msgspec.to_builtins(edit)) == words


def test_exceptions_and_conditions_in_words() -> None:
    made = {"feature": 1, "strength": 1, "exclude": ["sink", "special"], "when": {"feature": 2, "above": 0.5}}
    assert edit_in_words(made).endswith(
        "at every position except attention sinks (the first position, and outliers of the norm) and special tokens, "
        "where feature 2 is above 0.5"
    )
    assert ranges_in_words(((0, 1), (2, 7))) == "0, 2–6"
    assert ranges_in_words(()) == "none"
