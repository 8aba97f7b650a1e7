"""One turn: a batch of envelopes, decided one after the other; and their drafts on the way into the log, in
transactions of a bounded size."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from ..domain import events as ev
from ..domain.commands import Command
from ..domain.decide import decide
from ..domain.events import Draft, Event, Payload, draft, stored
from ..domain.evolve import evolve
from ..domain.messages import AdmitGeneration, AdmitGenerations, Message
from ..domain.state import State
from ..errors import InternalError, LogError, PreconditionFailedError, SAEError, TooLargeError
from ..limits import AT_A_TIME, TokenBucket, in_turns
from ..ports import Clock, EventLog
from .history import accepted_events, same_request
from .mailbox import Envelope
from .performer import problem

logger = logging.getLogger(__name__)

REFUSALS_PER_SECOND = 10.0
REFUSALS_BURST = 100.0

Answer = SAEError | slice | tuple[Event, ...]
"""The answer to an envelope once the batch is durable: an error, its own events in the batch, or the events of an
earlier command under the same key."""

MOST_EVENTS = 256
"""In one transaction."""


class RefusalRecorder:
    """Limits how many refusals go on record."""

    def __init__(self, clock: Clock) -> None:
        self._allowance = TokenBucket(REFUSALS_PER_SECOND, REFUSALS_BURST, clock.monotonic)
        self._not_recorded = 0

    def event_for(self, command: Command, error: SAEError) -> ev.CommandRejected | None:
        """The event for this refusal, or None if there were too many recently."""
        if not self._allowance.take():
            self._not_recorded += 1
            return None
        skipped, self._not_recorded = self._not_recorded, 0
        return ev.CommandRejected(
            command=command.type_name,
            error=problem(error),
            sae_id=getattr(command, "sae_id", None),
            not_recorded=skipped,
        )


class Turn:
    """Grows by one envelope at a time; `state` is the state after the drafts so far."""

    def __init__(self, state: State, log: EventLog, clock: Clock, refusals: RefusalRecorder) -> None:
        self.state = state
        self.drafts: list[Draft] = []
        self.answers: list[tuple[Envelope, Answer]] = []
        self._log = log
        self._clock = clock
        self._refusals = refusals

    async def take(self, envelope: Envelope) -> None:
        """Decide one envelope against the state after the earlier ones. Raises `LogError` only."""
        try:
            answer = await self._earlier_answer(envelope)
            if answer is None:
                self._check_revision(envelope)
                if envelope.refused is not None:
                    raise envelope.refused
                answer = await self._add(envelope, await self._decided(envelope.decided or envelope.message))
        except LogError:
            raise
        except SAEError as error:
            answer = error
            await self._put_on_record(envelope, error)
        except Exception:
            # decide is pure: its bug has changed nothing, and must not end the only writer.
            logger.exception("deciding %s failed", type(envelope.message).__name__)
            answer = InternalError("the command could not be processed")
        self.answers.append((envelope, answer))

    async def begin(self, recorded: Sequence[Event]) -> None:
        """Begin what the turn admitted, before anything is removed from the device: a Detach in this turn has to wait
        for these generations."""
        begun = (
            (envelope.begin, event)
            for envelope, answer in self.answers
            if envelope.begin is not None and isinstance(answer, slice)
            for event in recorded[answer]
        )
        for number, (begin, event) in enumerate(begun):
            if number and number % AT_A_TIME == 0:
                await asyncio.sleep(0)
            begin(event)

    async def _earlier_answer(self, envelope: Envelope) -> Answer | None:
        """The events of an earlier command under the same key, or None. None too for a generation, which is made again:
        one request may have several."""
        message = envelope.message
        if envelope.command_id is None:
            return None
        if isinstance(message, AdmitGeneration):
            request_sha256, is_text = message.request_sha256, True
        elif isinstance(message, Command) and envelope.keyed:
            request_sha256, is_text = message.digest(), False
        else:
            return None
        for other, answer in self.answers:
            if other.command_id == envelope.command_id and isinstance(answer, slice):
                same_request(self.drafts[answer.start], request_sha256)
                return None if is_text else answer
        events = await accepted_events(self._log, envelope.command_id)
        if not events:
            return None
        same_request(events[0], request_sha256)
        return None if is_text else tuple(events)

    def _check_revision(self, envelope: Envelope) -> None:
        if envelope.expected_revision not in (None, self.state.revision):
            raise PreconditionFailedError(
                f"If-Match names {envelope.expected_revision}, the state is at {self.state.revision}",
                expected=envelope.expected_revision,
                position=self.state.revision,
            )

    async def _put_on_record(self, envelope: Envelope, error: SAEError) -> None:
        if not isinstance(envelope.message, Command):
            return
        event = self._refusals.event_for(envelope.message, error)
        if event is None:
            return
        try:
            await self._add(envelope, [event])
        except Exception:
            # The refusal stands; an error whose fields cannot be written must not end the only writer.
            logger.exception("a refused %s could not be put on record", envelope.message.type_name)

    async def _decided(self, message: Message) -> list[Payload]:
        """What `decide` says; of thousands of texts a few at a time, for others on the event loop."""
        if not isinstance(message, AdmitGenerations):
            return decide(message, self.state)
        return [payload async for each in in_turns(message.requests) for payload in decide(each, self.state)]

    async def _add(self, envelope: Envelope, payloads: list[Payload]) -> slice:
        """All of one envelope's events, or none of them."""
        drafts: list[Draft] = []
        state = self.state
        for number, payload in enumerate(payloads):
            if number and number % AT_A_TIME == 0:
                await asyncio.sleep(0)
            made = self._draft(payload, envelope, state)
            drafts.append(made)
            state = evolve(state, made)
        first = len(self.drafts)
        self.drafts += drafts
        self.state = state
        return slice(first, len(self.drafts))

    def _draft(self, payload: Payload, envelope: Envelope, state: State) -> Draft:
        command_id, principal = _owner(payload, envelope, state)
        if isinstance(payload, ev.Intent) and isinstance(envelope.message, Command):
            payload = replace(payload, request_sha256=envelope.message.digest())
        made = draft(
            payload, time=self._clock.now(), command_id=command_id, principal=principal, position=state.position + 1
        )
        size = memoryview(made.data).nbytes
        if size > ev.MAX_PAYLOAD_BYTES:
            raise TooLargeError(
                f"{payload.type} takes {size} bytes; at most {ev.MAX_PAYLOAD_BYTES} go on record",
                size=size,
                limit=ev.MAX_PAYLOAD_BYTES,
            )
        return made


def _owner(payload: Payload, envelope: Envelope, state: State) -> tuple[str | None, str]:
    """The command of an event: the envelope's, or the one whose request it answers."""
    if isinstance(payload, ev.GenerationFinished) and payload.generation_id in state.generations:
        # The end belongs to whoever asked for the text, also where a start records it.
        begun = state.generations[payload.generation_id]
        return begun.command_id, begun.principal
    request_position = None if isinstance(payload, ev.Intent) else getattr(payload, "request_position", None)
    command = state.command_at(request_position) if request_position is not None else None
    if command is not None:
        return command.command_id, command.principal
    return envelope.command_id, envelope.principal


class Appender:
    """Appends what a turn has decided."""

    def __init__(self, log: EventLog, clock: Clock, count: Callable[[Sequence[Event], float], None]) -> None:
        """count: gets the events of each transaction, and the seconds that it took."""
        self._log, self._clock, self._count = log, clock, count
        self.done: list[Event] = []
        """Of the last drafts: what is durable, also if the rest could not be stored."""

    async def append(self, drafts: Sequence[Draft], expected: int) -> tuple[Event, ...]:
        """The drafts as events, durable, after the position `expected`. Raises `LogError`."""
        self.done = []
        for at in range(0, len(drafts), MOST_EVENTS):
            began, some = self._clock.monotonic(), drafts[at : at + MOST_EVENTS]
            recorded = stored(some, await self._log.append(some, expected=expected + at))
            self.done += recorded
            self._count(recorded, self._clock.monotonic() - began)
        return tuple(self.done)
