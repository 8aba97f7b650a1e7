"""Every event type ever shipped still reads, means the same, and folds to the same state.

The golden files are never rewritten: an event is a fact. A new event type or field gets new lines at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from sae_actor.domain.events import PAYLOADS, Event, GenerationStarted
from sae_actor.domain.evolve import evolve, fold
from sae_actor.domain.refs import intervention_sha256
from sae_actor.domain.state import EMPTY, encode
from sae_actor.domain.views.resources import state_view

HERE = Path(__file__).parent
LINES = (HERE / "golden_events.ndjson").read_bytes().splitlines()
EVENTS = [msgspec.json.decode(line, type=Event) for line in LINES]


def test_every_type_is_there() -> None:
    assert {event.type for event in EVENTS} == set(PAYLOADS)
    assert [event.position for event in EVENTS] == list(range(1, len(EVENTS) + 1))


def test_the_types_and_their_order_are_fixed() -> None:
    recorded = """
        ActorStarted ActorStopped ModelLoadRequested ModelLoaded ModelLoadFailed ModelUnloaded DownloadRequested
        DownloadCompleted DownloadFailed DownloadCancelled AttachRequested SaeAttached AttachFailed DetachRequested
        SaeDetached DeleteRequested SaeDeleted DeleteFailed SteeringChanged MonitoringChanged EffectInterrupted
        HookFaulted GpuLost CommandRejected GenerationStarted GenerationFinished PayloadRedacted LogTruncated
        SettingsReloaded PresetSaved PresetDeleted LogForked
    """
    assert list(PAYLOADS) == recorded.split()


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_read_and_written_back(number: int) -> None:
    event = EVENTS[number]
    payload = event.payload()
    assert payload is not None
    assert payload.type == event.type
    assert msgspec.json.decode(msgspec.json.encode(payload), type=type(payload)) == payload
    missing = _lost(msgspec.json.decode(event.data), msgspec.to_builtins(payload))
    assert missing == [], "a stored field is gone or means something else"
    assert msgspec.json.encode(event) == LINES[number], "the stored bytes of a payload are never encoded anew"


def test_an_intervention_keeps_its_digest() -> None:
    started = [payload for event in EVENTS if isinstance(payload := event.payload(), GenerationStarted)]
    known = [each for each in started if len(each.intervention_sha256) == 64]
    assert len(known) > 3
    assert [each for each in known if intervention_sha256(each.intervention) != each.intervention_sha256] == []


def test_the_state_they_lead_to() -> None:
    golden = msgspec.json.decode((HERE / "golden_state.json").read_bytes())
    assert _lost(golden, msgspec.to_builtins(state_view(fold(EVENTS)))) == []


def test_the_fold_may_stop_anywhere() -> None:
    whole = encode(fold(EVENTS))
    for at in range(len(EVENTS)):
        assert encode(fold(EVENTS[at:], fold(EVENTS[:at]))) == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "SomethingNew"},
        {"schema": 99},
        {"data": msgspec.Raw(b"null")},
        {"data": msgspec.Raw(b"{}")},
        {"data": msgspec.Raw(b'{"sae_id":"\xff"}')},
        {"data": msgspec.Raw(b'{"erased":true}')},
    ],
    ids=["type", "schema", "null", "empty", "not UTF-8", "erased"],
)
def test_what_cannot_be_read_moves_the_position_and_nothing_else(changes: dict[str, Any]) -> None:
    state = EMPTY
    for event in EVENTS:
        if "data" not in changes or any(field.required for field in msgspec.structs.fields(PAYLOADS[event.type])):
            after = evolve(state, msgspec.structs.replace(event, **changes))
            assert after == msgspec.structs.replace(state, position=event.position)
        state = evolve(state, event)


def test_fields_of_a_later_version_are_passed_over() -> None:
    for event in EVENTS:
        grown = msgspec.json.encode({**msgspec.json.decode(event.data), "later": [1]})
        assert msgspec.structs.replace(event, data=msgspec.Raw(grown)).payload() == event.payload()


def test_events_out_of_place_do_not_raise() -> None:
    for event in EVENTS:
        assert evolve(EMPTY, event).position == event.position
        assert fold(reversed(EVENTS)).position == 1


def _lost(stored: Any, now: Any, path: str = "$") -> list[str]:
    """Where a stored value has no equal in what is read today; new keys do not count."""
    if isinstance(stored, dict) and isinstance(now, dict):
        return [
            lost
            for key, value in stored.items()
            for lost in (_lost(value, now[key], f"{path}.{key}") if key in now else [f"{path}.{key}"])
        ]
    if isinstance(stored, list) and isinstance(now, list | tuple) and len(stored) == len(now):
        return [lost for i, pair in enumerate(zip(stored, now, strict=True)) for lost in _lost(*pair, f"{path}[{i}]")]
    return [] if stored == now else [path]
