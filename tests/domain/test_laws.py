"""Laws that hold for any sequence of messages: commands, reports, late reports, crashes and stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sae_actor.domain.commands import (
    AnyCommand,
    Attach,
    CancelDownload,
    Delete,
    DeletePreset,
    Detach,
    Download,
    Import,
    LoadModel,
    Monitor,
    RequestedIntervention,
    SavePreset,
    Steer,
    UnloadModel,
)
from sae_actor.domain.events import Event
from sae_actor.domain.evolve import COMMAND_OF_INTENT, closes, fold
from sae_actor.domain.pending import pending
from sae_actor.domain.refs import Edit
from sae_actor.domain.state import encode
from sae_actor.domain.views.outcomes import outcome
from sae_actor.domain.views.resources import waiting_for
from tests.domain.dsl import FOLDER, REPOSITORY, A, B
from tests.domain.simulated import SAES, Service

sae_ids = st.sampled_from(SAES)
commands: st.SearchStrategy[AnyCommand] = st.one_of(
    st.builds(LoadModel, model=st.sampled_from(["org/tiny", "org/other"])),
    st.just(UnloadModel()),
    st.builds(Download, st.just(REPOSITORY), path=st.sampled_from("abc"), force=st.booleans()),
    st.builds(CancelDownload, sae_ids),
    st.just(Import(path=FOLDER)),
    st.builds(
        Attach,
        sae_ids,
        layer=st.sampled_from([None, 0, 3, 4]),
        mode=st.sampled_from(["steer", "reconstruct"]),
        replace=st.booleans(),
    ),
    st.builds(Detach, sae_ids),
    st.builds(Delete, sae_ids),
    st.builds(Steer, sae_ids, features=st.sampled_from([(), (Edit(3, 7.0),), (Edit(99, 1.0),)])),
    st.builds(Monitor, sae_ids, enabled=st.booleans(), features=st.sampled_from([None, (3,), (99,)])),
    st.builds(
        SavePreset,
        name=st.sampled_from("xy"),
        interventions=st.tuples(st.builds(RequestedIntervention, sae_ids, steering=st.just((Edit(3, 7.0),)))),
    ),
    st.builds(DeletePreset, name=st.sampled_from("xy")),
)
Action = tuple[str, Any]
likely: st.SearchStrategy[AnyCommand] = st.sampled_from(
    [
        Attach(A),
        Attach(B, layer=2, replace=True),
        Attach(A, layer=3, replace=True),
        Attach(A, mode="reconstruct", replace=True),
        Detach(A),
        Detach(B),
        Steer(A, features=(Edit(3, 7.0),)),
        Monitor(A, enabled=True),
        Delete(B),
        Download(REPOSITORY, path="a", force=True),
    ]
)
actions: st.SearchStrategy[Action] = st.one_of(
    st.tuples(st.just("command"), likely),
    st.tuples(st.just("command"), likely),
    st.tuples(st.just("command"), commands),
    st.tuples(st.just("report"), st.tuples(st.integers(0, 9), st.just(True))),
    st.tuples(st.just("report"), st.tuples(st.integers(0, 9), st.just(True))),
    st.tuples(st.just("report"), st.tuples(st.integers(0, 9), st.just(False))),
    st.tuples(st.just("late"), st.tuples(st.integers(0, 99), st.booleans())),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.just("text"), st.sampled_from([None, ()])),
    st.tuples(st.just("end of text"), st.integers(0, 9)),
    st.tuples(st.just("fault"), st.integers(0, 99)),
)
READY: list[Action] = [
    ("command", command)
    for command in (LoadModel("org/tiny"), Download(REPOSITORY, path="a"), Download(REPOSITORY, path="b"))
] + [("report", (0, True))] * 3
REPLACED_AND_DETACHED: list[Action] = [
    *READY,
    ("command", Attach(A)),
    ("report", (0, True)),
    ("command", Attach(B, layer=2, replace=True)),
    ("command", Detach(A)),
    ("report", (0, True)),  # that B has come
]
scripts = st.builds(
    lambda ready, script: (READY if ready else []) + script,
    st.sampled_from([True, True, True, False]),
    st.lists(actions, min_size=20, max_size=50),
)
ACTIONS: dict[str, Callable[[Service, Any], object]] = {
    "command": lambda service, command: service.tell(command),
    "report": lambda service, args: service.report(*args),
    "late": lambda service, args: service.late(*args),
    "restart": lambda service, in_order: service.restart(in_order),
    "text": lambda service, steering: service.text(steering),
    "end of text": lambda service, which: service.end_of_text(which),
    "fault": lambda service, which: service.fault(which),
}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts, room=st.sampled_from([1, 1, 2, 3]), good=st.booleans())
@example(script=REPLACED_AND_DETACHED, room=1, good=True)
def test_any_sequence_of_messages(script: list[Action], room: int, good: bool) -> None:
    service = Service(room)
    for name, argument in script:
        ACTIONS[name](service, argument)
    service.finish(lambda: good)
    assert encode(fold(service.events)) == encode(service.state)
    for command_id, own in service.accepted.items():
        check_outcome(service, command_id, own)


def check_outcome(service: Service, command_id: str, own: list[Event]) -> None:
    """Exactly one end, whether at once or later, its own or shared."""
    intent = own[0].payload()
    assert service.closed[command_id] == (1 if type(intent) in COMMAND_OF_INTENT else 0)
    asked = getattr(intent, "joined", None) or own[0].position
    ends = [e for e in service.events if e.position > own[0].position and _ends(e, asked)]
    assert len(ends) >= 1 or type(intent) not in COMMAND_OF_INTENT
    if getattr(intent, "joined", None) is None and type(intent) in COMMAND_OF_INTENT:
        first = [e for e in ends if not getattr(e.payload(), "restored", False)]
        assert len(first) == 1, "one terminal event, restarts and faults of later days aside"
    said = outcome(command_id, [own[0], *ends[:1]], is_open=False)
    failure = getattr(ends[0].payload(), "error", None) if ends else None
    cancelled = bool(ends) and ends[0].type == "DownloadCancelled"
    assert said.status == ("failed" if failure is not None or cancelled else "completed")


def _ends(made: Event, asked: int) -> bool:
    payload = made.payload()
    assert payload is not None
    return (
        closes(payload)
        and getattr(payload, "request_position", None) == asked
        and getattr(payload, "reason", None) != "fault"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts, crashes=st.lists(st.booleans(), min_size=4, max_size=4))
@example(script=REPLACED_AND_DETACHED, crashes=[True, False, True, False])
def test_restarts_without_end_come_to_rest(script: list[Action], crashes: list[bool]) -> None:
    """An effect that kills the process every time is given up: no loop of crashes, and nothing waits for ever."""
    service = Service(1)
    for name, argument in script:
        ACTIONS[name](service, argument)
    for in_order in crashes:
        service.restart(in_order)
    for _ in range(60):
        if not pending(service.state):
            break
        service.restart(False)  # whatever is under way, the process dies of it
    assert pending(service.state) == ()
    assert waiting_for(service.state) == []
    assert service.state.commands == {}
