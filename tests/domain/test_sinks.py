"""Sinks are left out unless told otherwise, and what is on record keeps the meaning that it was written with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.chats import MessageSpan
from sae_actor.domain.commands import AnyCommand, Attach, Command, Monitor, RequestedIntervention, Steer
from sae_actor.domain.events import Event
from sae_actor.domain.evolve import fold
from sae_actor.domain.messages import AdmitGeneration, RequestedStop
from sae_actor.domain.refs import SINK_WINDOW, ActiveSae, Edit, HookPoint, intervention_sha256
from sae_actor.domain.views.attachments import attachment_view
from tests.domain.dsl import A, attach_done, attached_steered, edit, given

GOLDEN = Path(__file__).parent / "golden_events.ndjson"
EVENTS = [msgspec.json.decode(line, type=Event) for line in GOLDEN.read_bytes().splitlines()]
COMMANDS = msgspec.json.Decoder(AnyCommand)
SAMPLING = ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=8, seed=1)


def ask(**fields: Any) -> AdmitGeneration:
    return AdmitGeneration(generation_id="g1", kind="completion", tokens_prompt=3, sampling=SAMPLING, **fields)


def begun(**fields: Any) -> ev.GenerationStarted:
    (started,) = given(*attached_steered()).when(ask(**fields)).newest
    assert isinstance(started, ev.GenerationStarted)
    return started


# — what is on record —


def stored_edits(value: Any) -> Iterator[dict[str, Any]]:
    """Every edit in the payload of an event, as it lies there."""
    if isinstance(value, dict):
        if {"feature", "strength"} <= value.keys():
            yield value
        for each in value.values():
            yield from stored_edits(each)
    elif isinstance(value, list):
        for each in value:
            yield from stored_edits(each)


def test_every_stored_edit_names_what_it_leaves_out() -> None:
    """So the default of `Edit` decides about no event: not about those that there are, nor about those to come."""
    found = [each for event in EVENTS for each in stored_edits(msgspec.json.decode(event.data))]
    assert len(found) >= 8
    assert {tuple(each.get("exclude", ("missing",))) for each in found} == {(), ("sink",)}
    for exclude in ((), ("sink",)):
        written = msgspec.json.decode(msgspec.json.encode(Edit(feature=1, strength=2.0, exclude=exclude)))
        assert written["exclude"] == list(exclude)


def test_an_older_log_keeps_its_meaning() -> None:
    for event in EVENTS:
        payload, stored = event.payload(), msgspec.json.decode(event.data)
        read = list(stored_edits(msgspec.json.decode(msgspec.json.encode(payload))))
        assert [each["exclude"] for each in read] == [each["exclude"] for each in stored_edits(stored)]
        match payload:
            case ev.GenerationStarted():
                assert payload.sink_window == stored.get("sink_window"), "the median of the whole prompt"
                assert payload.stop_when is None or payload.stop_when.exclude == ()
                assert all(sae.exclude is None for sae in payload.intervention)
            case ev.MonitoringChanged():
                assert payload.exclude == ()
            case ev.AttachRequested() | ev.SaeAttached():
                assert payload.exclude is None
    attached = fold(EVENTS).attachments
    assert [each.monitoring.exclude for each in attached if each.monitoring is not None] == [()]


LATER = (
    b'{"request_sha256":"","sae_id":"a","hook_point":{"kind":"resid_post","layer":1},"hook_point_out":null,'
    b'"mode":"reconstruct","dtype":"float32","replaces":[],"warnings":[],"exclude":["special"]}',
    b'{"request_sha256":"","sae_id":"a","enabled":true,"features":null,"top_k":3,"exclude":["sink"]}',
    b'{"generation_id":"g","kind":"chat","intervention":[{"sae_id":"a","weights_sha256":"w","hook_point":{"kind":'
    b'"resid_post","layer":1},"hook_point_out":null,"mode":"reconstruct","steering":[],"exclude":[],'
    b'"attach_position":6}],"intervention_sha256":"x","sampling":{"temperature":0.0,"top_p":1.0,"max_tokens":8,'
    b'"seed":1,"stop":[]},"tokens_prompt":3,"stop_when":{"sae":{"sae_id":"a","weights_sha256":"w","hook_point":'
    b'{"kind":"resid_post","layer":1}},"feature":3,"above":0.5,"exclude":["sink"]},"sink_window":512}',
)
"""Payloads as they are written since there is a window: they are read so for good."""


def test_what_is_written_now_is_read_so_for_good() -> None:
    asked = msgspec.json.decode(LATER[0], type=ev.AttachRequested)
    assert (asked.mode, asked.exclude) == ("reconstruct", ("special",))
    assert msgspec.json.decode(LATER[1], type=ev.MonitoringChanged).exclude == ("sink",)
    started = msgspec.json.decode(LATER[2], type=ev.GenerationStarted)
    assert (started.sink_window, started.intervention[0].exclude) == (512, ())
    assert started.stop_when is not None
    assert started.stop_when.exclude == ("sink",)


# — what is asked for —


def test_the_default_of_every_request_and_command() -> None:
    steer = COMMANDS.decode(b'{"type":"Steer","sae_id":"a","features":[{"feature":584,"strength":85}]}')
    assert isinstance(steer, Steer)
    assert steer.features[0].exclude == ("sink",)
    named = b'{"type":"Steer","sae_id":"a","features":[{"feature":584,"strength":85,"exclude":["sink"]}]}'
    assert COMMANDS.decode(named) == steer, "one intervention, however it is asked for"
    everything = COMMANDS.decode(named.replace(b'["sink"]', b"[]"))
    assert isinstance(everything, Steer)
    assert everything.features[0].exclude == ()
    own = msgspec.convert({"sae_id": "a", "steering": [{"feature": 1, "strength": 2}]}, RequestedIntervention)
    assert own.steering[0].exclude == ("sink",)
    monitor = COMMANDS.decode(b'{"type":"Monitor","sae_id":"a","enabled":true}')
    assert isinstance(monitor, Monitor)
    assert monitor.exclude == ("sink",)
    assert msgspec.convert({"feature": 1, "above": 0.5}, RequestedStop).exclude == ("sink",)


def test_a_text_begins_under_the_window() -> None:
    started = begun(stop_when=RequestedStop(feature=3, above=0.5, exclude=("sink", "special")))
    assert started.sink_window == SINK_WINDOW == 512
    assert started.stop_when is not None
    assert started.stop_when.exclude == ("sink", "special")


def test_what_reconstruct_passes() -> None:
    sae = ActiveSae(sae_id="a", weights_sha256="w", hook_point=HookPoint("resid_post", 1), mode="reconstruct")

    def passes(exclude: Any = None, *edits: Edit) -> set[str]:
        return set(msgspec.structs.replace(sae, exclude=exclude, steering=edits).passes)

    assert passes() == passes(None, edit(exclude=())) == passes(None, edit()) == {"sink"}
    assert passes(None, edit(exclude=()), edit(exclude=("special",))) == {"special"}
    assert passes(None, edit(), edit(exclude=("special", "template"))) == {"sink", "special", "template"}
    assert passes((), edit()) == set()
    assert passes(("special",), edit()) == {"special"}


def test_attached_to_reconstruct_sinks_too() -> None:
    """Asked for, on record, in force; a request's edits in short form keep it, as they keep the mode."""
    asked = Attach(sae_id=A, mode="reconstruct", exclude=(), replace=True)
    story = given(*attached_steered()).when(asked)
    (intent,) = story.newest
    assert isinstance(intent, ev.AttachRequested)
    assert intent.exclude == ()
    story = story.when(attach_done(9))
    assert [each.exclude for each in story.newest if isinstance(each, ev.SaeAttached)] == [()]
    assert (story.state.in_force[0].mode, story.state.in_force[0].exclude) == ("reconstruct", ())
    assert attachment_view(story.state).exclude == ()
    for own in ({}, {"steering": (edit(),)}, {"steering": ()}):
        (started,) = story.when(ask(**own)).newest
        assert isinstance(started, ev.GenerationStarted)
        assert started.intervention[0].exclude == ()
        assert started.intervention_sha256 == intervention_sha256(started.intervention)
    named = RequestedIntervention(sae_id=A, mode="reconstruct")
    (started,) = story.when(ask(interventions=(named,))).newest
    assert isinstance(started, ev.GenerationStarted)
    assert started.intervention[0].exclude is None, "an intervention of its own says all of it"


def test_a_requests_own_reconstruction() -> None:
    everything = RequestedIntervention(sae_id=A, mode="reconstruct", exclude=())
    started = begun(interventions=(everything,))
    usual = begun(interventions=(msgspec.structs.replace(everything, exclude=None),))
    assert (started.intervention[0].exclude, usual.intervention[0].exclude) == ((), None)
    assert started.intervention_sha256 != usual.intervention_sha256
    template = RequestedIntervention(sae_id=A, mode="reconstruct", exclude=("template",))
    turns = (MessageSpan(role="user", first=0, stop=3, content=(1, 2)),)
    assert begun(interventions=(template,), turns=turns).turns == turns
    given(*attached_steered()).when(ask(interventions=(template,), turns=None)).refused(
        "positions_unknown", param="messages"
    )


@pytest.mark.parametrize("type_", [Attach, RequestedIntervention])
def test_only_a_reconstruction_is_told_what_to_pass(type_: Any) -> None:
    for mode in ({}, {"mode": "steer"}):
        tag = {"type": "Attach"} if type_ is Attach else {}
        with pytest.raises(msgspec.ValidationError, match="each edit has its own"):
            msgspec.convert({**tag, "sae_id": "a", **mode, "exclude": []}, type_)


@pytest.mark.parametrize(
    ("command", "digest"),
    [
        (Attach("a"), "0c992e25c4501dec1da15157be3cf1dcfc2373a3f6a59c614129af07e713583c"),
        (Monitor("a", enabled=True), "b0bf6766ad20461c9e63b583272e8329290d67b1793abec35489501c30a29b0f"),
    ],
)
def test_a_command_that_says_nothing_new_keeps_its_digest(command: Command, digest: str) -> None:
    """An idempotency key that was used before the upgrade still means the same."""
    assert command.digest() == digest
    changes: dict[str, Any] = {"mode": "reconstruct"} if isinstance(command, Attach) else {}
    plain = msgspec.structs.replace(command, **changes)
    assert msgspec.structs.replace(plain, exclude=()).digest() != plain.digest()
