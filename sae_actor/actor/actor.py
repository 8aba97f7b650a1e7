"""The actor: it alone appends to the log, one turn at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..domain import events as ev
from ..domain.commands import Command, Import, SavePreset, Steer
from ..domain.effects import Residents
from ..domain.events import Event, draft
from ..domain.evolve import evolve
from ..domain.messages import AdmitGeneration, AdmitGenerations, Message, Start, Stop
from ..domain.pending import pending, residents
from ..domain.reports import Report
from ..domain.rules.models import missing
from ..domain.state import EMPTY
from ..domain.views.outcomes import Outcome, outcome
from ..errors import (
    DeviceLostError,
    DiskFullError,
    DrainingError,
    InternalError,
    LogError,
    MailboxFullError,
    NotFoundError,
    NotReadyError,
    ReadOnlyError,
    SAEError,
)
from ..ports import Clock, Engine, EventLog
from ..subscriptions import PAGE, Broadcast
from .counts import ActorCounts
from .effect_runner import EffectRunner
from .history import Accepted, accepted_events, command_id_of, with_outcome
from .mailbox import Envelope, Mailbox
from .performer import Performer, failed
from .strengths import raw_command, raw_requests
from .turn import Appender, RefusalRecorder, Turn

logger = logging.getLogger(__name__)

BATCH = 64
"""The most envelopes that one transaction stores together."""


class Actor:
    """Owns the state. `submit`, `admit` and `report` may be called from any task of the loop."""

    def __init__(self, log: EventLog, engine: Engine, performer: Performer, clock: Clock, broadcast: Broadcast) -> None:
        self.state = EMPTY
        self.broadcast = broadcast
        self.mailbox = Mailbox()
        self.counts = ActorCounts()
        self.read_only: str | None = None
        """The reason if the log can no longer be written, else None."""
        self.started = False
        """The log is taken over, and the device follows it."""
        self.failure: asyncio.Future[SAEError] = asyncio.get_running_loop().create_future()
        """Set when the service must end."""
        self._log = log
        self._engine = engine
        self._clock = clock
        self._appender = Appender(log, clock, self.counts.appended)
        self.performer = performer
        self._runner = EffectRunner(performer.perform, failed, performer.undo, self.report)
        self._residents: Residents | None = None
        self._open: dict[str, Accepted] = {}
        """Open commands by id. One from an earlier run is added when somebody asks for it."""
        self._task: asyncio.Task[None] | None = None
        self._refusals = RefusalRecorder(clock)
        self.draining = False
        """New commands and texts are refused, `outcome` no longer waits; reports are still accepted."""
        self._stopped = False
        self._loss: asyncio.Future[Any] | None = None
        """The answer to the first report that the device is lost; later ones get the same."""

    # — life —

    async def replay(self) -> None:
        """Fold the log into the state."""
        while events := await self._log.read(self.state.position, PAGE):
            for event in events:
                self.state = evolve(self.state, event)
            await asyncio.sleep(0)

    async def start(self, start: Start) -> Accepted | None:
        """Take the log over, begin to restore its state, and ask for the model of the settings if it is missing.

        Raises `LogError`, and what the rules refuse it with.
        """
        self._task = asyncio.create_task(self._turns(), name="actor")
        self.started = True
        # With a full disk the service still serves reads; read_only says so.
        with contextlib.suppress(DiskFullError):
            await self._send(Envelope(start, "system", self._future(), reserved=True))
            if (model := missing(start.model, self.state)) is not None:
                return await self.submit(model, principal="configuration")
        return None

    async def acknowledge(self, loss: ev.LogTruncated) -> None:
        """Put an accepted loss on record, before anything else happens."""
        made = draft(loss, time=self._clock.now(), command_id=None, principal="system")
        for event in await self._appender.append([made], self.state.position):
            self.state = evolve(self.state, event)
            self.broadcast.publish([event])

    async def drain(self) -> None:
        """Begin nothing new: refuse commands and texts, answer who waits for an outcome, cancel effects, which stay
        owed. What runs may go on, and its end is recorded."""
        self.draining = True
        # Reports still have their turn, unless the turns have failed.
        self._refuse_waiting(DrainingError(), reports=self._task is None or self._task.done())
        self._close(everyone=True)
        await self._runner.close()

    async def stop(self, reason: str = "requested") -> None:
        """Drain, then record the stop.

        After a failure no stop is recorded: the next start sees a crash, and counts interrupted effects as attempts."""
        if self._task is None or self._stopped:
            return
        await self.drain()
        self._stopped = True
        if self.read_only is None and not self.failure.done():
            stop = Envelope(Stop(reason), "system", self._future(), reserved=True)
            self.mailbox.put(stop)
            await asyncio.wait([stop.reply, self._task], return_when=asyncio.FIRST_COMPLETED)
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and self._task.exception() is not None:
            logger.error("the actor ended early", exc_info=self._task.exception())
        self._refuse_waiting(NotReadyError("the service has stopped", retry_after=5), reports=True)

    # — messages —

    async def submit(
        self, command: Command, *, principal: str, key: str | None = None, expected_revision: int | None = None
    ) -> Accepted:
        """Accept a command: durable when this returns. Raises what the rules refuse it with."""
        self._open_for_writing(command)
        command_id = command_id_of(principal, key)
        envelope = Envelope(
            command,  # type: ignore[arg-type]  # every Command class is in AnyCommand
            principal,
            self._future(),
            command_id=command_id,
            keyed=key is not None,
            expected_revision=expected_revision,
        )
        if isinstance(command, Import | SavePreset | Steer):
            try:
                envelope.decided = await raw_command(command, self.state, self._engine, self.performer.hub)
            except SAEError as error:
                envelope.refused = error
        accepted: Accepted = await self._send(envelope)
        return accepted

    async def admit(
        self,
        requests: Sequence[AdmitGeneration],
        *,
        principal: str,
        begin: Callable[[Event], None] | None = None,
        command_id: str | None = None,
    ) -> tuple[Event, ...]:
        """Admit generations under one state, or none of them: their GenerationStarted, durable and in order, with the
        intervention that each will run under. begin: called with each of these events in the same turn, before anything
        is removed from the device; it must not wait or raise. command_id: derived from an idempotency key."""
        message = AdmitGenerations(requests=tuple(requests))
        self._open_for_writing(message)
        message = AdmitGenerations(requests=await raw_requests(requests, self.state, self._engine))
        envelope = Envelope(
            message, principal, self._future(), command_id=command_id, begin=begin, weight=len(requests)
        )
        events: tuple[Event, ...] = await self._send(envelope)
        return events

    def report(self, report: Report, *, principal: str = "system") -> asyncio.Future[Any]:
        """Hand in a report; the future returns its events once they are durable (none: it came too late)."""
        if isinstance(report, ev.GpuLost) and self._loss is not None:
            return self._loss
        envelope = Envelope(report, principal, self._future(), reserved=True)
        if self.read_only is not None:
            envelope.fail(ReadOnlyError(self.read_only))
        elif self._stopped:
            envelope.fail(NotReadyError("the service has stopped", retry_after=5))
        else:
            self.mailbox.put(envelope)
            if isinstance(report, ev.GpuLost):
                self._loss = envelope.reply
        return envelope.reply

    async def outcome(self, command_id: str, wait: float = 0.0, accepted: Accepted | None = None) -> Outcome:
        """The outcome of a command, after waiting at most `wait` seconds for it. Raises `NotFoundError`.

        It does not wait while the service stops or cannot write: the command then stays open.
        accepted: what `submit` returned; its events are not read again.
        """
        accepted = accepted or self._open.get(command_id)
        if accepted is None:
            events = await accepted_events(self._log, command_id)
            if not events:
                raise NotFoundError(f"there is no command {command_id}")
            accepted = self._accepted(command_id, events)
        if wait > 0 and self.state.is_open(command_id) and not self.draining and self.read_only is None:
            await asyncio.wait([accepted.closed], timeout=wait)
        is_open = self.state.is_open(command_id)
        recorded = accepted.events if is_open else await with_outcome(self._log, accepted.events)
        return outcome(command_id, recorded, is_open=is_open)

    async def effect_ended(self, name: str, request_position: int) -> None:
        """Wait until that effect has ended: its process is gone, its files are cleaned up."""
        await self._runner.ended(name, request_position)

    # — a turn —

    async def _turns(self) -> None:
        while True:
            envelopes = await self.mailbox.take(BATCH)
            turn = Turn(self.state, self._log, self._clock, self._refusals)
            try:
                await self._turn(turn, envelopes)
            except DiskFullError as error:
                self._cannot_write(error, turn, envelopes)
            except LogError as error:
                self._cannot_write(error, turn, envelopes)
                return
            except Exception:
                logger.exception("a turn failed unexpectedly")
                self._cannot_write(InternalError("the service has failed; its log has the cause"), turn, envelopes)
                return

    async def _turn(self, turn: Turn, envelopes: Sequence[Envelope]) -> None:
        began, before = self._clock.monotonic(), self.state
        for envelope in envelopes:
            await turn.take(envelope)
        recorded = await self._appender.append(turn.drafts, self.state.position)
        self.state = turn.state
        if any(event.type == "GpuLost" for event in recorded):
            self._fail(DeviceLostError("the device is lost"))
        await turn.begin(recorded)
        self._reconcile()
        self._answer(turn, recorded)
        self.counts.took(turn, before, recorded, self._clock.monotonic() - began)
        # After the answers: serving a thousand readers takes longer than answering this turn.
        await self.broadcast.publish_in_turns(recorded)

    def _answer(self, turn: Turn, recorded: tuple[Event, ...]) -> None:
        for envelope, answer in turn.answers:
            if isinstance(answer, SAEError):
                envelope.fail(answer)
            else:
                self._reply(envelope, recorded[answer] if isinstance(answer, slice) else answer)
        self._close(recorded)

    def _reply(self, envelope: Envelope, events: Sequence[Event]) -> None:
        command_id = None if isinstance(envelope.message, AdmitGeneration) else envelope.command_id
        envelope.answer(events if command_id is None else self._accepted(command_id, events))

    def _accepted(self, command_id: str, events: Sequence[Event]) -> Accepted:
        # The same envelope may have ended another command: that event is not its own.
        own = [event for event in events if event.command_id == command_id]
        accepted = Accepted(command_id, own, min(self.state.revision, events[-1].position), self._future())
        return self._open.setdefault(command_id, accepted) if self.state.is_open(command_id) else accepted

    def _close(self, recorded: Sequence[Event] = (), *, everyone: bool = False) -> None:
        """Wake the waiters of commands that are closed, or that this process will not close."""
        for command_id in [each for each in self._open if everyone or not self.state.is_open(each)]:
            accepted = self._open.pop(command_id)
            accepted.close(recorded)

    def _reconcile(self) -> None:
        if not self.state.running or self.failure.done():
            return
        self._runner.reconcile(pending(self.state))
        keep = residents(self.state)
        if keep != self._residents:
            self._residents = keep
            self._engine.retain(keep)

    def _cannot_write(self, error: SAEError, turn: Turn, envelopes: Sequence[Envelope]) -> None:
        """Stop recording. After a full disk the service still serves reads; after any other failure it ends."""
        for event in self._appender.done:  # a part of a large turn may be durable
            if event.position > self.state.position:
                self.state = evolve(self.state, event)
                self.broadcast.publish([event])
        self.read_only = error.detail
        logger.error("the log cannot be written: %s", error.detail)
        if not isinstance(error, DiskFullError):
            self._fail(error if isinstance(error, LogError) else InternalError(error.detail))
        for envelope, answer in turn.answers:
            # Repeated keys get their earlier events. All others fail: even a refusal may depend on an event that was
            # not stored.
            if isinstance(answer, tuple):
                self._reply(envelope, answer)
        for envelope in envelopes:
            self.counts.refused(envelope.message)
            envelope.fail(error)
        self._refuse_waiting(ReadOnlyError(error.detail), reports=True)
        self._close(everyone=True)
        self._runner.reconcile(())
        attached = tuple(a.request_position for a in self.state.attached)
        self._engine.retain(Residents(model=residents(self.state).model, saes=attached))

    def _fail(self, error: SAEError) -> None:
        if not self.failure.done():
            self.failure.set_result(error)

    # — small things —

    async def _send(self, envelope: Envelope) -> Any:
        if not envelope.reserved:
            # Check again: the service may have begun to stop while strengths were being converted.
            self._open_for_writing(envelope.message)
        try:
            self.mailbox.put(envelope)
        except MailboxFullError:
            self.counts.refused(envelope.message)
            raise
        # The sender may be cancelled; the command goes on.
        return await asyncio.shield(envelope.reply)

    def _open_for_writing(self, message: Command | Message) -> None:
        if self.read_only is not None or self.draining:
            self.counts.refused(message)
        if self.draining:
            raise DrainingError()
        if self.read_only is not None:
            raise ReadOnlyError(self.read_only)

    def _refuse_waiting(self, error: SAEError, *, reports: bool) -> None:
        for envelope in self.mailbox.drain(reserved=reports):
            envelope.fail(error)

    @staticmethod
    def _future() -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()
