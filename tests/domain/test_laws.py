"""Laws that hold for any sequence of messages: commands, reports, late reports, crashes and stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sae_actor.actor.performer import failed
from sae_actor.domain import events as ev
from sae_actor.domain.commands import (
    AnyCommand,
    Attach,
    CancelDownload,
    Command,
    Delete,
    Detach,
    Download,
    Import,
    LoadModel,
    Monitor,
    Steer,
    UnloadModel,
)
from sae_actor.domain.decide import decide
from sae_actor.domain.effects import (
    AttachEffect,
    DeleteEffect,
    DetachEffect,
    DownloadEffect,
    Effect,
    ImportEffect,
    LoadModelEffect,
)
from sae_actor.domain.events import Event, Payload
from sae_actor.domain.evolve import OPENING, closes, evolve, fold
from sae_actor.domain.messages import AdmitGeneration, Message, Start, Stop
from sae_actor.domain.pending import pending, residents
from sae_actor.domain.refs import Edit
from sae_actor.domain.reports import AttachedSae, EffectDone, HubSae, Report, SaeFailed
from sae_actor.domain.state import EMPTY, AttachmentState, State, encode
from sae_actor.domain.views.outcomes import outcome
from sae_actor.domain.views.resources import state_view, waiting_for
from sae_actor.errors import InternalError, SAEError
from tests.domain.dsl import FOLDER, IMPORTED, REPOSITORY, A, B, C, description, event, facts, files

SAMPLING = ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=4, seed=1)
SAES = (A, B, C, IMPORTED)

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


def succeeded(effect: Effect) -> Report:
    """The report of an effect that worked out."""
    match effect:
        case LoadModelEffect():
            return EffectDone(effect, facts(model_id=effect.model))
        case AttachEffect():
            return EffectDone(effect, AttachedSae(memory_bytes=1, device_bytes=1, dtype=effect.dtype))
        case DetachEffect() | DeleteEffect():
            return EffectDone(effect, 1)
        case DownloadEffect() | ImportEffect():
            return EffectDone(effect, HubSae(commit=None, files=files("x"), sae=description(), weights_sha256="w"))


class Service:
    """The rules alone, as the actor would drive them; checks the laws after every message."""

    def __init__(self, max_attachments: int) -> None:
        self.start = Start(version="1", max_attachments=max_attachments)
        self.state: State = EMPTY
        self.events: list[Event] = []
        self.seen: dict[tuple[str, int], Effect] = {}
        self.accepted: dict[str, list[Event]] = {}
        self.closed: Counter[str] = Counter()
        self.texts = 0
        self.tell(self.start)

    def tell(self, message: Message) -> list[Payload]:
        before = self.state
        try:
            payloads = decide(message, before)
        except SAEError as error:
            if not isinstance(message, Command | AdmitGeneration):
                pytest.fail(f"a report is never refused: {error.detail}")
            return []
        command_id = f"c{before.position + 1}"
        for payload in payloads:
            owner = command_id if isinstance(message, Command) and isinstance(payload, ev.Intent) else None
            self._record(event(payload, self.state.position + 1, owner))
        if isinstance(message, Command):
            assert payloads, "every accepted command is on record"
            assert isinstance(payloads[0], ev.Intent)
            assert self.events[before.position].command_id == command_id
            self.accepted[command_id] = self.events[before.position :]
        self._check(before)
        return payloads

    def _record(self, made: Event) -> None:
        before = self.state
        self.state = evolve(before, made)
        self.events.append(made)
        gone = set(before.commands) - set(self.state.commands)
        payload = made.payload()
        assert not gone or (payload is not None and closes(payload))
        self.closed.update(gone)

    def _check(self, before: State) -> None:
        state = self.state
        assert [e.position for e in self.events] == list(range(1, len(self.events) + 1))
        assert before.revision <= state.revision <= state.position == len(self.events)
        owed = pending(state)
        keys = [(effect.name, effect.request_position) for effect in owed]
        assert len(set(keys)) == len(keys)
        assert Counter(effect.name for effect in owed) == self._owed()
        self.seen.update(zip(keys, owed, strict=True))
        holding = [a for a in state.attachments if a.status != "failed"]
        giving_way = {sae_id for a in holding for sae_id in a.replaces}
        # What was replaced and detached meanwhile may leave after the other one has come.
        outlived = {sae_id for a in holding for sae_id in self._asked_to_replace(a)}
        taken = [a for a in holding if a.status != "detaching" or a.sae_id not in outlived]
        assert len(state.attached) <= state.max_attachments
        assert sum(a.sae_id not in giving_way or a.replaces != () for a in taken) <= state.max_attachments
        assert set(residents(state).saes) == {a.request_position for a in holding}
        points = [a.written_at for a in state.attached if a.mode == "reconstruct"]
        assert len(points) == len(set(points))
        for a in holding:
            record = state.saes[a.sae_id]
            assert record.status in ("cached", "downloading")  # by force, beside what is attached
            assert record.sae is not None
            assert state.model is not None
            assert state.model.status != "error" or a.status == "detaching"
        state_view(state)

    def _asked_to_replace(self, attachment: AttachmentState) -> tuple[str, ...]:
        intent = self.events[attachment.request_position - 1].payload()
        assert isinstance(intent, ev.AttachRequested)
        return intent.replaces

    def _owed(self) -> Counter[str]:
        """What is owed, said another way than `pending` does."""
        state = self.state
        owed: Counter[str] = Counter()
        owed["load_model"] = int(state.model is not None and state.model.status == "loading")
        for record in state.saes.values():
            if record.status == "downloading":
                owed["import" if record.source == "import" else "download"] += 1
            owed["delete"] += record.status == "deleting"
        statuses = [a.status for a in state.attachments]
        owed["detach"] = statuses.count("detaching")
        loaded = state.model is not None and state.model.status == "loaded"
        owed["attach"] = int(loaded and "attaching" in statuses)
        return +owed

    # — actions —

    def report(self, which: int, good: bool) -> None:
        owed = pending(self.state)
        if owed:
            effect = owed[which % len(owed)]
            assert self.tell(succeeded(effect) if good else failed(effect, InternalError("told to fail")))

    def late(self, which: int, good: bool) -> None:
        owed = {(effect.name, effect.request_position) for effect in pending(self.state)}
        # After a restart an attach waits for the model: owed again soon, and no one is there to report it.
        owed |= {("attach", a.request_position) for a in self.state.attachments if a.status == "attaching"}
        stale = [effect for key, effect in self.seen.items() if key not in owed]
        if stale:
            effect = stale[which % len(stale)]
            before = encode(self.state)
            assert self.tell(succeeded(effect) if good else failed(effect, InternalError("late"))) == []
            assert encode(self.state) == before

    def restart(self, in_order: bool) -> None:
        if in_order:
            self.tell(Stop())
            assert not self.state.running
        assert encode(fold(self.events)) == encode(self.state)
        self.tell(self.start)
        assert self.state.running
        assert self.state.generations == {}
        assert self.state.attached == ()

    def text(self, steering: tuple[Edit, ...] | None) -> None:
        self.texts += 1
        ask = AdmitGeneration(
            generation_id=f"g{self.texts}", kind="chat", tokens_prompt=1, sampling=SAMPLING, steering=steering
        )
        for started in self.tell(ask):
            assert isinstance(started, ev.GenerationStarted)
            assert [sae.sae_id for sae in started.intervention] == [a.sae_id for a in self.state.attached]
            assert steering == () or not self.state.degraded

    def end_of_text(self, which: int) -> None:
        running = list(self.state.generations.values())
        if running:
            one = running[which % len(running)]
            done = ev.GenerationFinished(
                generation_id=one.generation_id,
                started_position=one.position,
                finish_reason="stop",
                intervention_sha256=one.intervention_sha256,
            )
            assert self.tell(done) == [done]
            assert self.tell(done) == []

    def fault(self, which: int) -> None:
        asked = [e.position for e in self.events if e.type == "AttachRequested"]
        if asked:
            at = asked[which % len(asked)]
            fault = SaeFailed(at, ev.Problem(code="internal", detail="x"))
            live = any(a.request_position == at for a in self.state.attached)
            assert bool(self.tell(fault)) == live

    def finish(self, choose: Callable[[], bool]) -> None:
        """Do what is owed until nothing is."""
        for _ in range(200):
            if not pending(self.state):
                break
            self.report(0, choose())
        assert pending(self.state) == ()
        assert self.state.commands == {}
        assert waiting_for(self.state) == []
        assert not [a for a in self.state.attachments if a.status in ("attaching", "detaching")]


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
    assert service.closed[command_id] == (1 if type(intent) in OPENING else 0)
    asked = getattr(intent, "joined", None) or own[0].position
    ends = [e for e in service.events if e.position > own[0].position and _ends(e, asked)]
    assert len(ends) >= 1 or type(intent) not in OPENING
    if getattr(intent, "joined", None) is None and type(intent) in OPENING:
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
