"""Generations under an intervention: admitted by a turn of the actor, made by the engine, ended in the log.

A generation is a list that grows, and a task that records its end. So a client that disconnects ends the generation
but never its record. The last item of a reader comes after GenerationFinished is durable."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from ..actor.actor import Actor
from ..domain import events as ev
from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.reports import SaeFailed
from ..errors import (
    BadRequestError,
    DeadlineExceededError,
    DeviceLostError,
    InternalError,
    MailboxFullError,
    NotReadyError,
    SAEError,
    TooLargeError,
)
from ..limits import Throughput
from ..ports import Engine, Finished, GenerationRequest, GenerationStream, Watch
from ..telemetry.metrics import Labels
from .monitoring import Monitors, watches
from .records import LEFT_OUT, cut_off, failure, record_of, with_text, without
from .running import Completed, Requested, RunningGeneration, TokenOptions

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""After a generation's deadline the engine ends it by itself, if the cancel did not reach it."""

STOPPING_SECONDS = 5
"""After which a text that the end of the service cut short may be sent again."""

FAREWELL_SECONDS = 2.0
"""A cancelled generation ends after its step; wait this long for the engine's `Finished`."""


class Generations:
    """Admits requests and keeps those that run."""

    def __init__(
        self,
        actor: Actor,
        engine: Engine,
        *,
        record_text: bool = False,
        deadline_seconds: float = 600.0,
        places: int | None = None,
    ) -> None:
        """deadline_seconds: stop a generation that is unfinished this long after its first step, or has waited this
        long for it. places: how many generations the engine takes; further ones are refused before anything is
        recorded."""
        self.deadline_seconds = deadline_seconds
        self.farewell_seconds = FAREWELL_SECONDS
        self.places = places
        self._actor = actor
        self._engine = engine
        self._record_text = record_text
        self._monitors = Monitors(actor.broadcast)
        self.ended: Counter[Labels] = Counter()
        """By finish reason, in this life of the process."""
        self._throughput = Throughput()
        self._tokens: Counter[Labels] = Counter()
        self._running: dict[asyncio.Task[None], RunningGeneration] = {}
        self._opening: dict[asyncio.Task[Any], int] = {}
        """How many each of them opens."""
        self._monitoring: set[asyncio.Task[None]] = set()

    async def open(
        self,
        ask: Callable[[str], AdmitGeneration],
        token_ids: Sequence[int],
        *,
        principal: str,
        tell: TokenOptions | None = None,
        command_id: str | None = None,
    ) -> RunningGeneration:
        """Admit a request under a fresh generation id and start it; `command_id`: of its idempotency key. Raises what
        the rules refuse it with, and `MailboxFullError`."""
        asked = Requested(ask, token_ids, tell or TokenOptions())
        return (await self.open_all([asked], principal=principal, command_id=command_id))[0]

    async def open_all(
        self, asked: Sequence[Requested], *, principal: str, command_id: str | None = None
    ) -> list[RunningGeneration]:
        """Admit requests that belong together, all or none, and start them. Raises as `open`."""
        if self.places is not None and len(asked) > max(1, self.places):
            raise BadRequestError(f"{len(asked)} texts in a request; at most {self.places} are made at once", param="n")
        opening_now = sum(self._opening.values())
        if self.places is not None and len(self._running) + opening_now + len(asked) > self.places:
            # Those that run are next to end; who comes back is to find those gone that wait now.
            seconds = self._throughput.seconds_for(self.waiting + opening_now)
            raise MailboxFullError("too many generations are waiting", retry_after=seconds)
        opening = asyncio.create_task(self._open(asked, principal, command_id))
        self._opening[opening] = len(asked)
        opening.add_done_callback(lambda done: self._opening.pop(done, None))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Its start may be recorded already; its end must follow.
            opening.add_done_callback(_abandon)
            raise

    @property
    def tokens(self) -> Counter[Labels]:
        """`prompt` and `generated`, in this life of the process."""
        return self._tokens + Counter({("generated",): sum(len(text.made) for text in self._running.values())})

    @property
    def waiting(self) -> int:
        """Generations without a token yet."""
        return sum(not text.made for text in self._running.values())

    @property
    def running(self) -> int:
        """Generations with tokens, and without a recorded end."""
        return len(self._running) - self.waiting

    async def close(self) -> None:
        """Cancel what runs and wait until each end is on record."""
        while self._running or self._opening:
            for text in self._running.values():
                text.abandon(NotReadyError("the service is stopping", retry_after=STOPPING_SECONDS))
            await asyncio.wait([*self._running, *self._opening])

    async def _open(
        self, asked: Sequence[Requested], principal: str, command_id: str | None
    ) -> list[RunningGeneration]:
        opening = asyncio.current_task()
        assert opening is not None
        begun: list[RunningGeneration] = []

        def begin(event: Event) -> None:
            # From here on it counts among those that run.
            self._opening.pop(opening, None)
            begun.append(self._begin(event, asked[len(begun)]))

        requests = [self._request(each) for each in asked]
        await self._actor.admit(requests, principal=principal, begin=begin, command_id=command_id)
        return begun

    def _request(self, asked: Requested) -> AdmitGeneration:
        """Under a fresh id; with the schema that its text follows if texts are put on record."""
        request = asked.ask(f"gen-{uuid.uuid4()}")
        form = request.sampling.response_format
        if not self._record_text or form is None or form.schema_sha256 is None:
            return request
        sampling = replace(request.sampling, response_format=replace(form, schema=asked.schema))
        return replace(request, sampling=sampling)

    def _begin(self, event: Event, asked: Requested) -> RunningGeneration:
        """Hand an admitted generation to the engine, in the turn that records its start: a later removal from the
        device finds it there, and waits for it."""
        payload, token_ids, tell = event.payload(), tuple(asked.token_ids), asked.tell
        assert isinstance(payload, GenerationStarted)
        self._tokens["prompt",] += len(token_ids)
        weights = [self._actor.state.weights(sae) for sae in payload.intervention]
        monitored = watches(self._actor.state)
        asked_for = tuple(Watch(sae=sae, top_k=tell.top_k_features, exclude=tell.exclude) for sae in payload.watched)
        request = GenerationRequest(
            generation_id=payload.generation_id,
            token_ids=token_ids,
            sampling=payload.sampling,
            intervention=payload.intervention,
            deadline_seconds=self.deadline_seconds + GRACE_SECONDS,
            logprobs=tell.logprobs,
            prompt_logprobs=tell.prompt_logprobs,
            watched=(*asked_for, *monitored),
            grammar=asked.grammar,
            stop_when=payload.stop_when,
            turns=payload.turns,
            reasoning=payload.reasoning,
            sink_window=payload.sink_window,
            deterministic=payload.deterministic,
        )
        text = RunningGeneration(event, payload, self._stream(request), weights)
        if monitored:
            prompt = tell.prompt or (None,) * len(token_ids)
            following = asyncio.create_task(self._monitors.follow(text, prompt, lambda: self._actor.state))
            self._monitoring.add(following)
            following.add_done_callback(self._monitoring.discard)
        task = asyncio.create_task(self._run(text, token_ids), name=payload.generation_id)
        self._running[task] = text
        task.add_done_callback(self._over)
        return text

    def _stream(self, request: GenerationRequest) -> GenerationStream:
        """What the engine makes; every error is an end, so that it is always recorded."""
        try:
            return self._engine.generate(request)
        except SAEError as error:
            end = error
        except Exception:
            logger.exception("%s failed unexpectedly", request.generation_id)
            end = InternalError("the generation failed; the service's log has the cause")
        stream = GenerationStream()
        stream.append(end)
        return stream

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tokens["generated",] += len(self._running.pop(task).made)

    async def _run(self, text: RunningGeneration, token_ids: tuple[int, ...]) -> None:
        """Record the end of a generation, then deliver it."""
        ended = await self._end(text, len(token_ids))
        self._throughput.ended()
        if isinstance(ended, DeviceLostError):
            self._actor.tell(ev.GpuLost(detail=ended.detail))
        record = record_of(text.event, text.started, token_ids, ended)
        self.ended[record.finish_reason,] += 1
        if isinstance(ended, Finished) and ended.faulted is not None:
            fault = ev.Problem(code=ended.error_code or "internal", detail=ended.error_detail or "the SAE failed")
            self._actor.tell(SaeFailed(ended.faulted, fault))
        try:
            record = await self._record(text, record, token_ids, ended)
        except SAEError as error:
            # What is not on record is not given out as if it were.
            ended = error
        if isinstance(ended, Finished) and ended.reason == "error":
            ended = failure(ended)
        elif isinstance(ended, Finished) and ended.reason == "cancelled" and text.cut_short is not None:
            ended = text.cut_short
        text.complete(ended if isinstance(ended, SAEError) else Completed(ended, record))

    async def _end(self, text: RunningGeneration, tokens_prompt: int) -> Finished | SAEError:
        """How a generation ends: by itself or, if cancelled, as the engine reports, whose thread may hang."""
        stream = text.stream
        either: list[asyncio.Future[Any]] = [stream.ended, text.left]
        waiting = [*either, stream.begun]
        await asyncio.wait(waiting, timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        if begun := stream.begun.done():
            await asyncio.wait(either, timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        late = not (stream.ended.done() or text.left.done())
        if not stream.ended.done():
            stream.stop()
            await asyncio.wait([stream.ended], timeout=self.farewell_seconds)
            await stream.aclose()
        ended = stream.end or cut_off(tokens_prompt, stream.tokens)
        if not late or isinstance(ended, SAEError):
            return ended
        what = "finish" if begun else "begin"
        error = DeadlineExceededError(f"the generation did not {what} within {self.deadline_seconds:g} seconds")
        return replace(ended, reason="error", error_code=error.code, error_detail=error.detail)

    async def _record(
        self,
        text: RunningGeneration,
        record: GenerationFinished,
        token_ids: tuple[int, ...],
        ended: Finished | SAEError,
    ) -> GenerationFinished:
        """Write the record to the log; with the text if that is configured, as far as an event can hold it."""
        if self._record_text:
            record = whole = with_text(record, token_ids, ended)
            for names in LEFT_OUT:
                try:
                    await self._actor.tell(record, principal=text.principal)
                except TooLargeError as error:
                    record = without(whole, names, error)
                else:
                    return record
        await self._actor.tell(record, principal=text.principal)
        return record


def _abandon(opening: asyncio.Task[list[RunningGeneration]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        for text in opening.result():
            text.abandon()
