"""What was active for one answer, told from the log alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import RequestedIntervention
from sae_actor.domain.events import ERASED, Sampling
from sae_actor.domain.messages import AdmitGeneration
from sae_actor.domain.refs import Edit, FinishReason
from sae_actor.domain.views.explanation import Explaining
from sae_actor.domain.views.provenance import Provenance, follow
from tests.domain.dsl import (
    DIED,
    STARTED,
    A,
    Story,
    attach_done,
    attached_steered,
    attaching,
    cached,
    edit,
    given,
    loaded,
    restored,
)
from tests.domain.test_golden_events import EVENTS

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=5, seed=1)


def begun(story: Story, name: str = "g", **more: Any) -> Story:
    return story.when(AdmitGeneration(generation_id=name, kind="chat", sampling=SAMPLING, tokens_prompt=3, **more))


def finished(story: Story, name: str = "g", **more: Any) -> Story:
    (started,) = (
        (event.position, payload.intervention_sha256)
        for event in story.events
        if isinstance(payload := event.payload(), ev.GenerationStarted) and payload.generation_id == name
    )
    end = {"finish_reason": "stop", "intervention_sha256": started[1], **more}
    return story.and_then(ev.GenerationFinished(generation_id=name, started_position=started[0], **end))


def told(story: Story, **wanted: Any) -> list[dict[str, Any]]:
    explaining = Explaining(**wanted)
    for event in story.events:
        explaining.feed(event)
    return [json.loads(msgspec.json.encode(view)) for view in explaining.views.values()]


def since(view: dict[str, Any]) -> list[tuple[int, str]]:
    return [(each["position"], each["type"]) for each in view["since"]]


def one(story: Story, name: str = "g") -> dict[str, Any]:
    (view,) = told(story, generation_id=name)
    return view


def test_the_server_s_steering() -> None:
    view = one(finished(begun(given(*attached_steered()))))
    assert since(view["model"]) == [(2, "ModelLoadRequested"), (3, "ModelLoaded")]
    (sae,) = view["intervention"]
    assert (sae["sae_id"], sae["commit"], sae["weights_sha256"], sae["steering_from"]) == (
        A, "1" * 40, "weights of a", "server",
    )  # fmt: skip
    assert [each["words"] for each in sae["steering"]] == [
        "feature 3: adds 7 times its decoder row, at every position except attention sinks (the first position, and "
        "outliers of the norm)"
    ]
    assert since(sae) == [
        (5, "DownloadCompleted"), (6, "AttachRequested"), (7, "SaeAttached"), (8, "SteeringChanged"),
    ]  # fmt: skip
    assert view["digest"] == {"recomputed": view["intervention_sha256"], "agrees": True, "state_agrees": True}
    assert (view["position"], view["finished"]["position"], view["finish_reason"]) == (9, 10, "stop")


@pytest.mark.parametrize(
    ("reason", "state"),
    [("stop", "finished"), ("length", "finished"), ("feature", "finished"), ("intervention_removed", "finished"),
     ("cancelled", "cancelled"), ("error", "failed"), ("interrupted", "interrupted")],
)  # fmt: skip
def test_the_state_of_a_text(reason: FinishReason, state: str) -> None:
    story = begun(given(*attached_steered()))
    assert one(story)["state"] == "running"
    assert told(story, generation_id="g", live=False)[0]["state"] == "interrupted"
    assert one(finished(story, finish_reason=reason))["state"] == state


def test_the_request_s_own_steering() -> None:
    story = given(*attached_steered())
    view = one(finished(begun(story, steering=(edit(4, 1.0),))))
    (sae,) = view["intervention"]
    assert (sae["steering_from"], sae["steering"][0]["feature"]) == ("request", 4)
    assert since(sae)[-1] == (9, "GenerationStarted")
    assert (view["own_steering"], view["digest"]["state_agrees"]) == (True, True)
    named = (RequestedIntervention(sae_id=A, mode="reconstruct"),)
    assert one(finished(begun(story, interventions=named)))["intervention"][0]["mode"] == "reconstruct"


def test_the_baseline() -> None:
    view = one(finished(begun(given(*attached_steered()), baseline=True)))
    assert (view["baseline"], view["intervention"], view["attached"]) == (True, [], [A])
    assert view["digest"]["state_agrees"] is True


def test_steering_out_of_force() -> None:
    story = given(*attached_steered()).and_then(ev.SteeringChanged(sae_id=A, features=(edit(),), enabled=False))
    (sae,) = one(finished(begun(story)))["intervention"]
    assert (sae["steering"], sae["steering_enabled"], since(sae)[-1]) == ([], False, (9, "SteeringChanged"))


def test_over_restarts_the_first_and_the_last_are_named() -> None:
    story = given(*attached_steered())
    for _ in range(3):
        back = attach_done(6, restored=True, steering=(edit(),))
        story = story.and_then(DIED, restored(2), back)
    view = one(finished(begun(story)))
    assert since(view["model"]) == [(2, "ModelLoadRequested"), (3, "ModelLoaded"), (16, "ModelLoaded")]
    (sae,) = view["intervention"]
    assert since(sae) == [
        (5, "DownloadCompleted"), (6, "AttachRequested"), (7, "SaeAttached"), (17, "SaeAttached"),
        (8, "SteeringChanged"),
    ]  # fmt: skip
    assert view["digest"]["state_agrees"] is True


def test_a_moved_sae_keeps_who_steered_it() -> None:
    story = given(*attached_steered()).and_then(
        attaching(A, 2, replaces=(A,)),
        ev.SaeDetached(request_position=9, attach_position=6, sae_id=A, freed_bytes=0, reason="replaced"),
        attach_done(9, A, 2, steering=(edit(),)),
    )
    (sae,) = one(finished(begun(story)))["intervention"]
    assert sae["hook_point"] == {"kind": "resid_post", "layer": 2}
    assert since(sae)[1:] == [(9, "AttachRequested"), (11, "SaeAttached"), (8, "SteeringChanged")]


def test_steering_ends_with_the_attachment() -> None:
    story = given(*attached_steered()).and_then(
        ev.DetachRequested(sae_id=A),
        ev.SaeDetached(request_position=9, attach_position=6, sae_id=A, freed_bytes=1),
        attaching(A),
        attach_done(11),
    )
    (sae,) = one(finished(begun(story)))["intervention"]
    assert (sae["steering"], since(sae)[1:]) == ([], [(11, "AttachRequested"), (12, "SaeAttached")])


def test_files_that_were_replaced_under_an_attachment() -> None:
    """A forced download leaves what is attached: the weights that ran came with the first one."""
    again = ev.DownloadCompleted(
        request_position=9, sae_id=A, commit="2" * 40, files=(), weights_sha256="others",
        sae=given(*attached_steered()).state.saes[A].sae,  # type: ignore[arg-type]  # it is there
    )  # fmt: skip
    story = given(*attached_steered()).and_then(ev.DownloadRequested(sae_id=A, force=True), again)
    (sae,) = one(finished(begun(story)))["intervention"]
    assert (sae["commit"], sae["weights_sha256"], since(sae)[0]) == ("1" * 40, "weights of a", (5, "DownloadCompleted"))


def test_without_anything_attached() -> None:
    view = one(finished(begun(given(STARTED, loaded(), cached("b")))))
    assert (view["intervention"], view["attached"], view["baseline"], view["digest"]["agrees"]) == ([], [], False, True)


def test_how_the_weights_were_held() -> None:
    assert one(finished(begun(given(STARTED, loaded()))))["model"]["quantization"] is None
    environment = {"quantization": {"scheme": "nf4", "method": "bitsandbytes"}}
    view = one(finished(begun(given(STARTED, loaded(environment=environment)))))
    assert (view["model"]["quantization"], view["model"]["dtype"]) == ("nf4", "float32")


def test_a_text_without_an_end() -> None:
    view = one(begun(given(*attached_steered())))
    assert (view["finished"], view["finish_reason"], view["receipt"], view["tokens_prompt"]) == (None, None, None, 3)
    assert view["digest"]["agrees"] is True


@pytest.mark.parametrize("which", ["started", "finished", "steering"])
def test_a_record_that_does_not_agree_is_named(which: str) -> None:
    story = finished(begun(given(*attached_steered())))
    events = list(story.events)
    if which == "finished":
        story = finished(begun(given(*attached_steered())), intervention_sha256="0" * 64)
    else:
        payload = events[8].payload()
        assert isinstance(payload, ev.GenerationStarted)
        sae = replace(payload.intervention[0], steering=(Edit(feature=3, strength=7.5),))
        changed = (
            replace(payload, intervention_sha256="0" * 64)
            if which == "started"
            else replace(payload, intervention=(sae,))
        )
        events[8] = replace(events[8], data=msgspec.Raw(msgspec.json.encode(changed)))
        story = Story(tuple(events))
    digest = one(story)["digest"]
    assert digest["agrees"] is False
    assert digest["state_agrees"] is (which != "steering")


def test_the_digest_is_over_what_is_stored() -> None:
    """A field that edits did not have when the text was made is no part of its digest."""
    story = begun(given(*attached_steered()))
    stored = msgspec.json.decode(story.events[8].data)
    (sae,) = stored["intervention"]
    del sae["steering"][0]["when"], sae["exclude"]
    shown = json.dumps(
        [{k: v for k, v in sae.items() if k != "attach_position"}], sort_keys=True, separators=(",", ":")
    )
    stored["intervention_sha256"] = hashlib.sha256(shown.encode()).hexdigest()
    earlier = replace(story.events[8], data=msgspec.Raw(msgspec.json.encode(stored)))
    digest = one(finished(Story((*story.events[:8], earlier))))["digest"]
    assert digest == {"recomputed": stored["intervention_sha256"], "agrees": True, "state_agrees": True}


def test_a_beginning_of_a_later_version() -> None:
    story = finished(begun(given(*attached_steered())))
    events = list(story.events)
    events[8] = replace(events[8], schema=99)
    view = one(Story(tuple(events)))
    assert (view["erased"], view["readable"], view["sampling"]) == (False, False, None)
    assert view["digest"] == {"recomputed": view["intervention_sha256"], "agrees": True, "state_agrees": None}


def test_a_beginning_that_was_erased() -> None:
    story = finished(begun(given(*attached_steered()), tag="secret"))
    events = list(story.events)
    events[8] = replace(events[8], data=msgspec.Raw(ERASED))
    story = Story(tuple(events))
    view = one(story)
    assert (view["generation_id"], view["erased"], view["tag"], view["sampling"]) == ("g", True, None, None)
    assert view["intervention"][0]["sae_id"] == A
    assert view["digest"] == {"recomputed": view["intervention_sha256"], "agrees": True, "state_agrees": None}
    assert told(story) == [view]
    assert told(story, tag="secret") == []
    events[9] = replace(events[9], data=msgspec.Raw(ERASED))
    nothing = Story(tuple(events))
    assert told(nothing, generation_id="g") == []
    assert [(each["generation_id"], each["position"]) for each in told(nothing)] == [(None, 9)]


def test_a_list_by_tag_and_position() -> None:
    story = begun(begun(given(*attached_steered()), "one", tag="x"), "two", tag="y")
    story = begun(finished(story, "two"), "three", tag="x")
    story = finished(finished(story, "three"), "one")
    names = {position: [each["generation_id"] for each in told(story, after=position)] for position in (0, 9, 10, 12)}
    assert names == {0: ["one", "two", "three"], 9: ["two", "three"], 10: ["three"], 12: []}
    assert [each["generation_id"] for each in told(story, tag="x")] == ["one", "three"]
    first = told(story, limit=1)
    assert [(each["generation_id"], each["finish_reason"]) for each in first] == [("one", "stop")]
    assert told(story, tag="x", after=first[0]["position"], limit=5) == told(story)[2:]


def test_reading_stops_where_nothing_can_change() -> None:
    story = finished(begun(finished(begun(given(*attached_steered()))), "h"), "h")
    explaining = Explaining(generation_id="g")
    complete = []
    for event in story.events:
        explaining.feed(event)
        complete.append(explaining.complete)
    assert complete.index(True) == 9
    assert not Explaining(limit=1).complete


def test_a_hundred_texts_with_steering_between_them() -> None:
    story = given(*attached_steered())
    expected = []
    for number in range(100):
        if number % 3 == 0:
            story = story.and_then(ev.SteeringChanged(sae_id=A, features=(edit(number % 32, float(number)),)))
        changed = max(e.position for e in story.events if e.type == "SteeringChanged")
        story = finished(begun(story, f"g{number}"), f"g{number}")
        expected.append((f"g{number}", number // 3 * 3 % 32, float(number // 3 * 3), changed))
    found = [
        (view["generation_id"], sae["steering"][0]["feature"], sae["steering"][0]["strength"], since(sae)[-1][0])
        for view in told(story)
        for sae in view["intervention"]
        if view["digest"] == {"recomputed": view["intervention_sha256"], "agrees": True, "state_agrees": True}
    ]
    assert found == expected


def test_every_event_ever_shipped_is_followed() -> None:
    known = Provenance()
    explaining = Explaining()
    for event in EVENTS:
        explaining.feed(event)
        known = follow(known, event)
        assert set(known.attached) <= {a.request_position for a in known.state.attachments}
    assert [view.generation_id for view in explaining.views.values()][:2] == ["gen-1", "gen-2"]
    first = msgspec.to_builtins(explaining.views[15])
    assert first["digest"]["agrees"] is True
    assert (first["text"], first["prompt_token_ids"]) == (" hé\u2028", (1, 2, 3, 4, 5))
    for broken in ({"schema": 99}, {"data": msgspec.Raw(b"{}")}, {"data": msgspec.Raw(b'{"sae_id":"\xff"}')}):
        other = Explaining()
        for event in EVENTS:
            other.feed(replace(event, **broken))


def test_what_is_in_force_is_what_the_rules_admit() -> None:
    story = given(*attached_steered(), cached("b"))
    payload = begun(story).newest[0]
    assert isinstance(payload, ev.GenerationStarted)
    assert story.state.in_force == payload.intervention
