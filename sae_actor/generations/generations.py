"""Generations under an intervention: admitted by a turn of the actor, made by the engine, ended in the log.

A generation is a list that grows, and a task that records its end. So a client that disconnects ends the generation
but never its record. The last item of a reader comes after GenerationFinished is durable."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ..actor.actor import Actor
from ..domain import events as ev
from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.reports import SaeFailed
from ..domain.structs import filled
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
from .places import has_place
from .records import LEFT_OUT, cut_off, failure, record_of, with_text, without
from .running import Completed, Requested, RunningGeneration

logger = logging.getLogger(__name__)

ENGINE_DEADLINE_MARGIN = 5.0
"""Seconds. The engine's own deadline is this much later, in case the cancel does not reach it."""

STOPPING_SECONDS = 5
"""When a request may be sent again whose generation the end of the service cut short."""

STOP_WAIT_SECONDS = 2.0
"""How long to wait for the engine's `Finished` after a stop: the engine ends a generation between two steps."""


class Generations:
    """Admits generations and keeps track of those that run."""

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
        long for it. places: how many generations may be admitted at a time (see `has_place`); further requests are
        refused before anything is recorded."""
        self.deadline_seconds = deadline_seconds
        self.stop_wait_seconds = STOP_WAIT_SECONDS
        self.places = places
        self._actor = actor
        self._engine = engine
        self._record_text = record_text
        self._monitors = Monitors(actor.broadcast)
        self.ended: Counter[Labels] = Counter()
        """Ends on record since the process started, by finish reason."""
        self._throughput = Throughput()
        self._tokens: Counter[Labels] = Counter()
        self._running: dict[asyncio.Task[None], RunningGeneration] = {}
        self._opening: dict[asyncio.Task[Any], tuple[str, int]] = {}
        """Admission under way → whose, and how many generations it admits."""
        self._monitoring: set[asyncio.Task[None]] = set()

    async def open_all(
        self, requested: Sequence[Requested], *, principal: str, command_id: str | None = None
    ) -> list[RunningGeneration]:
        """Admit generations that belong together, all or none, under fresh ids, and start them. command_id: made from
        their idempotency key. Raises the error with which the rules refuse one, or `MailboxFullError`."""
        if self.places is not None and len(requested) > max(1, self.places):
            detail = f"{len(requested)} texts in a request; at most {self.places} are made at once"
            raise BadRequestError(detail, param="n")
        taken = self._taken()
        if self.places is not None and not has_place(taken, principal, len(requested), self.places):
            # The running ones end next. By the time the client returns, those that wait now should be gone.
            seconds = self._throughput.seconds_for(taken.total() - self.running)
            raise MailboxFullError("too many generations are waiting", retry_after=seconds)
        opening = asyncio.create_task(self._open(requested, principal, command_id))
        self._opening[opening] = principal, len(requested)
        opening.add_done_callback(lambda done: self._opening.pop(done, None))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Its start may be on record already; its end must follow.
            opening.add_done_callback(_abandon)
            raise

    def _taken(self) -> Counter[str]:
        """Places that are taken, by principal."""
        taken = Counter(generation.principal for generation in self._running.values())
        for principal, count in self._opening.values():
            taken[principal] += count
        return taken

    @property
    def tokens(self) -> Counter[Labels]:
        """Tokens since the process started: `prompt` and `generated`."""
        under_way = sum(len(generation.made) for generation in self._running.values())
        return self._tokens + Counter({("generated",): under_way})

    @property
    def waiting(self) -> int:
        """Generations without a token yet."""
        return sum(not generation.made for generation in self._running.values())

    @property
    def running(self) -> int:
        """Generations with tokens, and without a recorded end."""
        return len(self._running) - self.waiting

    async def idle(self) -> None:
        """Wait until none runs, and each end is on record."""
        while unended := [*self._running, *self._opening]:
            await asyncio.wait(unended)

    async def close(self) -> None:
        """Stop all generations and wait until each end is on record."""
        while self._running or self._opening:
            for generation in self._running.values():
                generation.abandon(NotReadyError("the service is stopping", retry_after=STOPPING_SECONDS))
            await asyncio.wait([*self._running, *self._opening])

    async def _open(
        self, requested: Sequence[Requested], principal: str, command_id: str | None
    ) -> list[RunningGeneration]:
        opening = asyncio.current_task()
        assert opening is not None
        opened: list[RunningGeneration] = []

        def begin(event: Event) -> None:
            # From here on its generations count as running.
            self._opening.pop(opening, None)
            opened.append(self._begin(event, requested[len(opened)]))

        requests = [self._request(each) for each in requested]
        await self._actor.admit(requests, principal=principal, begin=begin, command_id=command_id)
        return opened

    def _request(self, requested: Requested) -> AdmitGeneration:
        """The request under a fresh id; with the schema of its text if texts go on record."""
        request = requested.make_request(f"gen-{uuid.uuid4()}")
        form = request.sampling.response_format
        if not self._record_text or form is None or form.schema_sha256 is None:
            return request
        sampling = replace(request.sampling, response_format=replace(form, schema=requested.schema))
        return replace(request, sampling=sampling)

    def _begin(self, event: Event, requested: Requested) -> RunningGeneration:
        """Hand an admitted generation to the engine, in the turn that records its start: so a later detach finds it
        there, and waits for it."""
        payload, token_ids, options = event.payload(), tuple(requested.token_ids), requested.options
        assert isinstance(payload, GenerationStarted)
        self._tokens["prompt",] += len(token_ids)
        weights = [self._actor.state.weights(sae) for sae in payload.intervention]
        monitored = watches(self._actor.state)
        top_k, exclude = options.top_k_features, options.exclude
        read = tuple(Watch(sae=sae, top_k=top_k, exclude=exclude) for sae in payload.watched)
        request = filled(
            GenerationRequest,
            payload,
            options,
            requested,
            token_ids=token_ids,
            share=event.principal,
            deadline_seconds=self.deadline_seconds + ENGINE_DEADLINE_MARGIN,
            watched=(*read, *monitored),
        )
        generation = RunningGeneration(event, payload, self._stream(request), weights)
        if monitored:
            prompt = options.prompt or (None,) * len(token_ids)
            following = asyncio.create_task(self._monitors.follow(generation, prompt, lambda: self._actor.state))
            self._monitoring.add(following)
            following.add_done_callback(self._monitoring.discard)
        task = asyncio.create_task(self._run(generation, token_ids), name=payload.generation_id)
        self._running[task] = generation
        task.add_done_callback(self._over)
        return generation

    def _stream(self, request: GenerationRequest) -> GenerationStream:
        """The engine's stream. An error of the engine becomes its result, so that an end is always recorded."""
        try:
            return self._engine.generate(request)
        except SAEError as error:
            result = error
        except Exception:
            logger.exception("%s failed unexpectedly", request.generation_id)
            result = InternalError("the generation failed; the service's log has the cause")
        stream = GenerationStream()
        stream.append(result)
        return stream

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tokens["generated",] += len(self._running.pop(task).made)

    async def _run(self, generation: RunningGeneration, token_ids: tuple[int, ...]) -> None:
        """Record the end of a generation, then deliver it."""
        ended = await self._end(generation, len(token_ids))
        self._throughput.ended()
        if isinstance(ended, DeviceLostError):
            self._actor.report(ev.GpuLost(detail=ended.detail))
        record = record_of(generation.event, generation.started, token_ids, ended)
        if isinstance(ended, Finished) and ended.faulted is not None:
            fault = ev.Problem(code=ended.error_code or "internal", detail=ended.error_detail or "the SAE failed")
            self._actor.report(SaeFailed(ended.faulted, fault))
        try:
            record = await self._record(generation, record, token_ids, ended)
        except SAEError as error:
            # An end that is not on record is not delivered as if it were, nor counted.
            ended = error
        else:
            self.ended[record.finish_reason,] += 1
        if isinstance(ended, Finished) and ended.reason == "error":
            ended = failure(ended)
        elif isinstance(ended, Finished) and ended.reason == "cancelled" and generation.cut_short is not None:
            ended = generation.cut_short
        generation.complete(ended if isinstance(ended, SAEError) else Completed(ended, record))

    async def _end(self, generation: RunningGeneration, tokens_prompt: int) -> Finished | SAEError:
        """Wait for the end, the reader's disconnect or the deadline. Then stop it and wait briefly: the engine's
        thread may hang."""
        stream = generation.stream
        ends: list[asyncio.Future[Any]] = [stream.finished, generation.left]
        first = [*ends, stream.begun]
        await asyncio.wait(first, timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        if begun := stream.begun.done():
            await asyncio.wait(ends, timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        late = not (stream.finished.done() or generation.left.done())
        if not stream.finished.done():
            stream.stop()
            await asyncio.wait([stream.finished], timeout=self.stop_wait_seconds)
            await stream.aclose()
        ended = stream.result or cut_off(tokens_prompt, stream.tokens)
        if not late or isinstance(ended, SAEError):
            return ended
        what = "finish" if begun else "begin"
        error = DeadlineExceededError(f"the generation did not {what} within {self.deadline_seconds:g} seconds")
        return replace(ended, reason="error", error_code=error.code, error_detail=error.detail)

    async def _record(
        self,
        generation: RunningGeneration,
        record: GenerationFinished,
        token_ids: tuple[int, ...],
        ended: Finished | SAEError,
    ) -> GenerationFinished:
        """Write the record to the log; with the text if that is configured and small enough for an event."""
        if self._record_text:
            record = whole = with_text(record, token_ids, ended)
            for names in LEFT_OUT:
                try:
                    await self._actor.report(record, principal=generation.principal)
                except TooLargeError as error:
                    record = without(whole, names, error)
                else:
                    return record
        await self._actor.report(record, principal=generation.principal)
        return record


def _abandon(opening: asyncio.Task[list[RunningGeneration]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        for generation in opening.result():
            generation.abandon()
