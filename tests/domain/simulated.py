"""A service by hand: messages decided, effects carried out or lost, every law checked after each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from sae_actor.actor.performer import failed
from sae_actor.domain import events as ev
from sae_actor.domain.commands import (
    Command,
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
    RunEffect,
)
from sae_actor.domain.events import Event, Payload
from sae_actor.domain.evolve import closes, evolve, fold
from sae_actor.domain.messages import AdmitGeneration, Message, Start, Stop
from sae_actor.domain.pending import pending, residents
from sae_actor.domain.refs import Edit
from sae_actor.domain.reports import AttachedSae, EffectDone, HubSae, MeasuredRun, Report, SaeFailed
from sae_actor.domain.state import EMPTY, AttachmentState, State, encode
from sae_actor.domain.views.resources import state_view, waiting_for
from sae_actor.errors import InternalError, SAEError
from tests.domain.dsl import IMPORTED, A, B, C, description, event, facts, files

SAMPLING = ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=4, seed=1)
SAES = (A, B, C, IMPORTED)


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
        case RunEffect():
            return EffectDone(effect, MeasuredRun(rows=0, rows_sha256="", summary={}, environments={}))


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
