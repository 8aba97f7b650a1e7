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
from ..limits import NO_DEADLINE, Throughput, in_turns
from ..ports import Engine, Finished, GenerationRequest, GenerationStream, Watch
from ..telemetry.metrics import Labels
from .details import detail_watches
from .monitoring import LabelsOf, Monitors, unlabelled, watches
from .places import has_place, places_of
from .records import LEFT_OUT, cut_off, failure, record_of, with_text, without
from .running import Completed, Requested, RunningGeneration, abandon

logger = logging.getLogger(__name__)

ENGINE_DEADLINE_MARGIN = 5.0
"""Seconds. The engine's own deadline is this much later, in case the cancel does not reach it."""

STOPPING_SECONDS = 5
"""When a request may be sent again whose generation the end of the service cut short."""

MOST_SCORED = 1024 * 16
"""Texts to score that are admitted at a time; further ones are refused."""

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
        labels: LabelsOf = unlabelled,
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
        self._monitors = Monitors(actor.broadcast, labels)
        self.ended: Counter[Labels] = Counter()
        """Ends on record since the process started, by finish reason."""
        self._throughput = Throughput()
        self._tokens: Counter[Labels] = Counter()
        self._running: dict[asyncio.Task[None], RunningGeneration] = {}
        self._opening: dict[asyncio.Task[Any], tuple[str, int]] = {}
        """Admission under way → whose, and how many generations it admits; texts to score are not counted."""
        self._scored = 0
        """Texts to score, admitted or about to be."""
        self._monitoring: set[asyncio.Task[None]] = set()

    async def open_all(
        self, requested: Sequence[Requested], *, principal: str, command_id: str | None = None
    ) -> list[RunningGeneration]:
        """Admit generations that belong together, all or none, under fresh ids, and start them. command_id: made from
        their idempotency key. Raises the error with which the rules refuse one, or `MailboxFullError`."""
        if self.places is not None and len(requested) > max(1, self.places):
            detail = f"{len(requested)} texts in a request; at most {self.places} are made at once"
            raise BadRequestError(detail, param="n")
        if self.places is not None and not has_place(self._taken(), principal, len(requested), self.places):
            # The running ones end next. By the time the client returns, those that wait now should be gone.
            waiting = sum(each.waits and not each.background for each in self._running.values())
            seconds = self._throughput.seconds_for(waiting + sum(count for _, count in self._opening.values()))
            raise MailboxFullError("too many generations are waiting", retry_after=seconds)
        parties = await self._opened([[each] for each in requested], None, principal, command_id)
        return [each for party in parties for each in party]

    async def open_behind(self, requested: Requested, *, principal: str) -> RunningGeneration:
        """Admit a text of a run (`background`), and start it. It takes no place. Raises as `open_all`."""
        ((opened,),) = await self._opened([[requested]], None, principal, None)
        return opened

    async def open_scores(
        self,
        parties: Sequence[Sequence[Requested]],
        *,
        baseline: int | None,
        principal: str,
        command_id: str | None = None,
    ) -> list[list[RunningGeneration]]:
        """Admit texts to score, all or none, and start them. Each party is one text under several interventions, which
        run side by side; baseline: the index of the one that the others are compared with. command_id and what is
        raised: as `open_all`."""
        count = sum(map(len, parties))
        if self._scored + count > MOST_SCORED:
            raise MailboxFullError("too many texts are waiting to be scored", retry_after=STOPPING_SECONDS)
        self._scored += count
        return await self._opened(parties, baseline, principal, command_id)

    async def _opened(
        self, parties: Sequence[Sequence[Requested]], baseline: int | None, principal: str, command_id: str | None
    ) -> list[list[RunningGeneration]]:
        opening = asyncio.create_task(self._open(parties, baseline, principal, command_id))
        self._opening[opening] = principal, sum(map(places_of, parties))
        opening.add_done_callback(lambda done: self._opening.pop(done, None))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Its start may be on record already; its end must follow.
            opening.add_done_callback(_abandon)
            raise

    def _taken(self) -> Counter[str]:
        """Places that are taken, by principal."""
        taken = Counter(each.principal for each in self._running.values() if each.holds_place)
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
        """Generations without a token yet; texts to score that have not begun."""
        return sum(generation.waits for generation in self._running.values())

    @property
    def running(self) -> int:
        """Further ones, without a recorded end."""
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
        self, parties: Sequence[Sequence[Requested]], baseline: int | None, principal: str, command_id: str | None
    ) -> list[list[RunningGeneration]]:
        opening = asyncio.current_task()
        assert opening is not None
        opened: list[list[RunningGeneration]] = []
        begun: list[Event] = []

        def begin(event: Event) -> None:
            begun.append(event)
            if len(begun) == len(party := parties[len(opened)]):
                opened.append(self._begin(begun, party, baseline))
                begun.clear()
                # From here on they count as running.
                whose, count = self._opening[opening]
                self._opening[opening] = whose, count - places_of(party)

        requests = [self._request(each) async for each in in_turns(each for party in parties for each in party)]
        try:
            await self._actor.admit(requests, principal=principal, begin=begin, command_id=command_id)
        finally:
            missed = (each for party in parties[len(opened) :] for each in party)
            self._scored -= sum(each.scoring is not None for each in missed)
        return opened

    def _request(self, requested: Requested) -> AdmitGeneration:
        """The request under a fresh id; with the schema of its text if texts go on record."""
        request = requested.make_request(f"gen-{uuid.uuid4()}")
        form = request.sampling.response_format
        if not self._record_text or form is None or form.schema_sha256 is None:
            return request
        sampling = replace(request.sampling, response_format=replace(form, schema=requested.schema))
        return replace(request, sampling=sampling)

    def _begin(
        self, events: Sequence[Event], party: Sequence[Requested], baseline: int | None
    ) -> list[RunningGeneration]:
        """Hand admitted generations to the engine, in the turn that records their start: so a later detach finds them
        there, and waits for them."""
        monitored = () if any(each.scoring is not None for each in party) else watches(self._actor.state)
        requests = [self._asked(event, each, monitored) for event, each in zip(events, party, strict=True)]
        opened = []
        for event, each, stream in zip(events, party, self._streams(requests, baseline), strict=True):
            payload = event.payload()
            assert isinstance(payload, GenerationStarted)
            weights = [self._actor.state.weights(sae) for sae in payload.intervention]
            generation = RunningGeneration(event, payload, stream, weights, background=each.background)
            if monitored:
                prompt = each.options.prompt or (None,) * len(each.token_ids)
                following = asyncio.create_task(self._monitors.follow(generation, prompt, lambda: self._actor.state))
                self._monitoring.add(following)
                following.add_done_callback(self._monitoring.discard)
            task = asyncio.create_task(self._run(generation, tuple(each.token_ids)), name=payload.generation_id)
            self._running[task] = generation
            task.add_done_callback(self._over)
            opened.append(generation)
        return opened

    def _asked(self, event: Event, requested: Requested, monitored: tuple[Watch, ...]) -> GenerationRequest:
        """The engine's request for an admitted generation."""
        payload, options = event.payload(), requested.options
        assert isinstance(payload, GenerationStarted)
        top_k, exclude, detailed = options.top_k_features, options.exclude, options.detailed
        read = tuple(Watch(sae=sae, top_k=top_k, exclude=exclude) for sae in payload.watched)
        request = filled(
            GenerationRequest,
            payload,
            options,
            requested,
            token_ids=tuple(requested.token_ids),
            share=event.principal,
            deadline_seconds=NO_DEADLINE if requested.background else self.deadline_seconds + ENGINE_DEADLINE_MARGIN,
            watched=(*read, *monitored),
            details=None if detailed is None else detail_watches(payload, detailed, watches(self._actor.state)),
        )
        self._tokens["prompt",] += len(request.given)
        return request

    def _streams(self, requests: Sequence[GenerationRequest], baseline: int | None) -> Sequence[GenerationStream]:
        """The engine's streams. An error of the engine becomes their result, so that an end is always recorded."""
        try:
            if requests[0].scoring is not None:
                return self._engine.score(requests, baseline=baseline)
            return [self._engine.generate(request) for request in requests]
        except SAEError as error:
            result = error
        except Exception:
            logger.exception("%s failed unexpectedly", requests[0].generation_id)
            result = InternalError("the generation failed; the service's log has the cause")
        streams = [GenerationStream() for _ in requests]
        for stream in streams:
            stream.append(result)
        return streams

    def _over(self, task: asyncio.Task[None]) -> None:
        generation = self._running.pop(task)
        self._tokens["generated",] += len(generation.made)
        self._scored -= generation.is_score

    async def _run(self, generation: RunningGeneration, token_ids: tuple[int, ...]) -> None:
        """Record the end of a generation, then deliver it."""
        ended = await self._end(generation, len(token_ids))
        if generation.holds_place:
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
        # Texts to score wait for one another, as many as there are; a run's for all others, at any time.
        limit = self.deadline_seconds if generation.holds_place else None
        await asyncio.wait(first, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if begun := stream.begun.done():
            limit = None if generation.background else self.deadline_seconds
            await asyncio.wait(ends, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
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


def _abandon(opening: asyncio.Task[list[list[RunningGeneration]]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        for party in opening.result():
            abandon(party)
