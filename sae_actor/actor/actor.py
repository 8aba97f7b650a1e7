"""The actor: the only one who appends to the log, one turn at a time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from ..domain import events as ev
from ..domain.commands import Command
from ..domain.decide import decide
from ..domain.effects import Residents
from ..domain.events import Draft, Event, Payload, draft
from ..domain.evolve import evolve
from ..domain.messages import AdmitGeneration, Report, Start, Stop
from ..domain.pending import pending, residents
from ..domain.projections import Outcome, outcome
from ..domain.state import EMPTY, State
from ..errors import (
    DeviceLostError,
    DiskFullError,
    InternalError,
    LogError,
    NotFoundError,
    NotReadyError,
    PreconditionFailedError,
    ReadOnlyError,
    SAEError,
)
from ..ports import Clock, Engine, EventLog
from .broadcast import PAGE, Broadcast
from .history import Allowance, accepted_events, command_id_of, same_request, with_outcome
from .mailbox import Envelope, Mailbox
from .perform import Performer, problem
from .runner import EffectRunner

logger = logging.getLogger(__name__)

BATCH = 64
"""Envelopes that one transaction may store together."""
REJECTIONS_PER_SECOND = 10.0
REJECTIONS_BURST = 100.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A command that is on record: its id and the position of its first event."""

    command_id: str
    position: int
    revision: int


@dataclass(slots=True)
class _Turn:
    """A batch of envelopes on its way into one transaction."""

    state: State
    drafts: list[Draft] = field(default_factory=list)
    answers: list[tuple[Envelope, Any]] = field(default_factory=list)
    """What each envelope is told once the batch is durable: an error, or (first, last) index of its events."""


class Actor:
    """Owns the state. `submit`, `admit` and `report` may be called from any task of the loop."""

    def __init__(self, log: EventLog, engine: Engine, performer: Performer, clock: Clock, broadcast: Broadcast) -> None:
        self.state = EMPTY
        self.broadcast = broadcast
        self.mailbox = Mailbox()
        self.read_only: str | None = None
        """Why nothing can be written any more, if so."""
        self.failure: asyncio.Future[SAEError] = asyncio.get_running_loop().create_future()
        """Set when the service must end: the log failed, or the device is lost."""
        self._log = log
        self._engine = engine
        self._clock = clock
        self._runner = EffectRunner(performer.perform, performer.undo, self.tell)
        self._residents: Residents | None = None
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._allowance = Allowance(REJECTIONS_PER_SECOND, REJECTIONS_BURST, clock.monotonic())
        self._not_recorded = 0

    # — life —

    async def replay(self) -> None:
        """Fold the log into the state."""
        while events := await self._log.read(self.state.position, PAGE):
            for event in events:
                self.state = evolve(self.state, event)
            await asyncio.sleep(0)

    async def start(self, start: Start) -> None:
        """Take the log over and begin to bring back what it says was there."""
        self._task = asyncio.create_task(self._turns(), name="actor")
        await self._send(Envelope(start, "system", self._future(), reserved=True))

    async def acknowledge(self, loss: ev.LogTruncated) -> None:
        """Put an accepted loss on record, before anything else happens."""
        made = draft(loss, time=self._clock.now(), command_id=None, principal="system")
        for event in await self._log.append([made], expected=self.state.position):
            self.state = evolve(self.state, event)
            self.broadcast.publish([event])

    async def stop(self, reason: str = "requested") -> None:
        """End in order: what still waits is refused, effects are cancelled, the stop goes on record."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        self._refuse_waiting(NotReadyError("the service is stopping", retry_after=5))
        await self._runner.close()
        if self.read_only is None:
            try:
                await self._send(Envelope(Stop(reason), "system", self._future(), reserved=True))
            except SAEError as error:
                logger.error("the stop is not on record: %s", error.detail)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._refuse_waiting(NotReadyError("the service has stopped", retry_after=5))

    # — messages —

    async def submit(
        self, command: Command, *, principal: str, key: str | None = None, expected_revision: int | None = None
    ) -> Accepted:
        """Accept a command: durable when this returns. Raises what the rules refuse it with."""
        self._open_for_writing()
        command_id = command_id_of(principal, key)
        envelope = Envelope(
            command,  # type: ignore[arg-type]  # every Command class is in AnyCommand
            principal,
            self._future(),
            command_id=command_id,
            keyed=key is not None,
            expected_revision=expected_revision,
        )
        events: tuple[Event, ...] = await self._send(envelope)
        return Accepted(command_id, events[0].position, self.state.revision)

    async def admit(self, request: AdmitGeneration, *, principal: str) -> Event:
        """Admit a text request: the GenerationStarted, durable, with the intervention it will run under."""
        self._open_for_writing()
        events: tuple[Event, ...] = await self._send(Envelope(request, principal, self._future()))
        return events[0]

    def tell(self, report: Report) -> asyncio.Future[Any]:
        """Hand in a report; the future ends when it is durable (or was too late)."""
        envelope = Envelope(report, "system", self._future(), reserved=True)
        if self._stopping or self.read_only is not None:
            envelope.fail(NotReadyError("the service is stopping", retry_after=5))
        else:
            self.mailbox.put(envelope)
        return envelope.reply

    async def outcome(self, command_id: str, wait: float = 0.0) -> Outcome:
        """What became of a command, waiting for it at most `wait` seconds. Raises `NotFoundError`."""
        if wait > 0 and command_id in self.state.commands:
            closed = self._future()
            self._waiters.setdefault(command_id, []).append(closed)
            try:
                await asyncio.wait([closed], timeout=wait)
            finally:
                waiting = self._waiters.get(command_id, [])
                if closed in waiting:
                    waiting.remove(closed)
                if not waiting:
                    self._waiters.pop(command_id, None)
        is_open = command_id in self.state.commands
        events = await accepted_events(self._log, command_id)
        if not events:
            raise NotFoundError(f"no command {command_id}")
        return outcome(command_id, events if is_open else await with_outcome(self._log, events), is_open=is_open)

    async def effect_ended(self, name: str, request_position: int) -> None:
        """Return when that effect runs no more: its process is gone, its files are cleaned up."""
        await self._runner.ended(name, request_position)

    # — a turn —

    async def _turns(self) -> None:
        while True:
            envelopes = await self.mailbox.take(BATCH)
            turn = _Turn(self.state)
            for envelope in envelopes:
                await self._decide(envelope, turn)
            try:
                recorded = await self._record(turn)
            except SAEError as error:
                self._cannot_write(error, turn)
                if not isinstance(error, DiskFullError):
                    return
                continue
            self.state = turn.state
            self.broadcast.publish(recorded)
            self._reconcile()
            self._answer(turn, recorded)

    async def _decide(self, envelope: Envelope, turn: _Turn) -> None:
        """One envelope against the state that the ones before it in this batch led to."""
        try:
            known = await self._known(envelope, turn)
            if known is not None:
                turn.answers.append((envelope, known))
                return
            if envelope.expected_revision not in (None, turn.state.revision):
                raise PreconditionFailedError(
                    f"If-Match names {envelope.expected_revision}, the state is of {turn.state.revision}",
                    expected=envelope.expected_revision,
                    position=turn.state.revision,
                )
            payloads = decide(envelope.message, turn.state)
        except SAEError as error:
            self._rejected(envelope, error, turn)
            turn.answers.append((envelope, error))
            return
        except Exception:
            # decide is pure: a fault in it has changed nothing, and must not end the one writer there is.
            logger.exception("deciding %s failed", type(envelope.message).__name__)
            turn.answers.append((envelope, InternalError("the command could not be decided")))
            return
        first = len(turn.drafts)
        for payload in payloads:
            self._add(payload, envelope, turn)
        turn.answers.append((envelope, slice(first, len(turn.drafts))))

    async def _known(self, envelope: Envelope, turn: _Turn) -> Any:
        """The events of an earlier command under the same key, or None."""
        if not envelope.keyed or envelope.command_id is None or not isinstance(envelope.message, Command):
            return None
        for other, answer in turn.answers:
            if other.command_id == envelope.command_id and isinstance(answer, slice):
                same_request(turn.drafts[answer.start].data, envelope.message)
                return answer
        events = await accepted_events(self._log, envelope.command_id)
        if not events:
            return None
        same_request(next(e for e in events if e.command_id == envelope.command_id).data, envelope.message)
        return tuple(events)

    def _add(self, payload: Payload, envelope: Envelope, turn: _Turn) -> None:
        command_id, principal = self._owner(payload, envelope, turn.state)
        if isinstance(payload, ev.Intent) and isinstance(envelope.message, Command):
            payload = replace(payload, request_sha256=envelope.message.digest())
        made = draft(payload, time=self._clock.now(), command_id=command_id, principal=principal)
        provisional = Event(
            position=turn.state.position + 1,
            event_id=made.event_id,
            type=made.type,
            schema=made.schema,
            time=made.time,
            command_id=made.command_id,
            principal=made.principal,
            data=made.data,
            hash="",
        )
        turn.drafts.append(made)
        turn.state = evolve(turn.state, provisional)

    @staticmethod
    def _owner(payload: Payload, envelope: Envelope, state: State) -> tuple[str | None, str]:
        """The command an event belongs to: its sender's, or the one whose request it answers."""
        answers = None if isinstance(payload, ev.Intent) else getattr(payload, "request_position", None)
        command = state.command_at(answers) if answers is not None else None
        if command is not None:
            return command.command_id, command.principal
        return envelope.command_id, envelope.principal

    def _rejected(self, envelope: Envelope, error: SAEError, turn: _Turn) -> None:
        """Put a refusal on record, at a bounded rate."""
        if not isinstance(envelope.message, Command):
            return
        if not self._allowance.take(self._clock.monotonic()):
            self._not_recorded += 1
            return
        refused = ev.CommandRejected(
            command=envelope.message.name,
            error=problem(error),
            sae_id=getattr(envelope.message, "sae_id", None),
            not_recorded=self._not_recorded,
        )
        self._not_recorded = 0
        self._add(refused, envelope, turn)

    async def _record(self, turn: _Turn) -> tuple[Event, ...]:
        if not turn.drafts:
            return ()
        return await self._log.append(turn.drafts, expected=self.state.position)

    def _answer(self, turn: _Turn, recorded: tuple[Event, ...]) -> None:
        for envelope, answer in turn.answers:
            if isinstance(answer, SAEError):
                envelope.fail(answer)
            else:
                envelope.answer(recorded[answer] if isinstance(answer, slice) else answer)
        for command_id in [each for each in self._waiters if each not in self.state.commands]:
            for waiter in self._waiters.pop(command_id):
                if not waiter.done():
                    waiter.set_result(None)
        lost = next((e for e in recorded if e.type == "GpuLost"), None)
        if lost is not None and not self.failure.done():
            self.failure.set_result(DeviceLostError("the device is lost"))

    def _reconcile(self) -> None:
        if not self.state.running:
            return
        self._runner.reconcile(pending(self.state))
        keep = residents(self.state)
        if keep != self._residents:
            self._residents = keep
            self._engine.retain(keep)

    def _cannot_write(self, error: SAEError, turn: _Turn) -> None:
        """Nothing of the turn happened. A full disk leaves a service that can still be read; else it ends."""
        self.read_only = error.detail
        logger.error("the log cannot be written: %s", error.detail)
        for envelope, answer in turn.answers:
            envelope.fail(answer if isinstance(answer, SAEError) else error)
        self._refuse_waiting(ReadOnlyError(error.detail))
        self._runner.reconcile(())
        attached = tuple(a.request_position for a in self.state.attached)
        self._engine.retain(Residents(model=residents(self.state).model, saes=attached))
        if not isinstance(error, DiskFullError) and not self.failure.done():
            self.failure.set_result(error if isinstance(error, LogError) else InternalError(error.detail))

    # — small things —

    async def _send(self, envelope: Envelope) -> Any:
        self.mailbox.put(envelope)
        # The sender may be cancelled; the command goes on.
        return await asyncio.shield(envelope.reply)

    def _open_for_writing(self) -> None:
        if self.read_only is not None:
            raise ReadOnlyError(self.read_only)
        if self._stopping:
            raise NotReadyError("the service is stopping", retry_after=5)

    def _refuse_waiting(self, error: SAEError) -> None:
        for envelope in self.mailbox.drain():
            envelope.fail(error)

    @staticmethod
    def _future() -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()
