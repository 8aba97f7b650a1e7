"""Generations under an intervention: admitted by a turn of the actor, made by the engine, ended in the log.

A generation is a list that grows, and a task that records its end. So a client that disconnects ends the generation
but never its record. The last item of a reader comes after GenerationFinished is durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from ..actor.actor import Actor
from ..domain import events as ev
from ..domain.events import Event, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.reports import SaeFailed
from ..domain.structs import filled
from ..errors import (
    BadRequestError,
    DeviceLostError,
    InternalError,
    MailboxFullError,
    NotReadyError,
    SAEError,
)
from ..limits import NO_DEADLINE, in_turns
from ..ports import Engine, Finished, GenerationRequest, GenerationStream, Watch
from ..telemetry.metrics import Labels
from .details import detail_watches
from .ending import end_of, put_on_record
from .monitoring import LabelsOf, Monitors, unlabelled, watches
from .places import has_place, places_of
from .quotas import Hold, Quotas
from .records import failure, record_of
from .running import Completed, Requested, RunningGeneration, abandon_opened, holding, states

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
        running: int | None = None,
        labels: LabelsOf = unlabelled,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """deadline_seconds: stop a generation that is unfinished this long after its first step, or has waited this
        long for it. places: how many generations may be admitted at a time (see `has_place`); further requests are
        refused before anything is recorded. running: how many of them the engine runs at a time."""
        self.deadline_seconds = deadline_seconds
        self.stop_wait_seconds = STOP_WAIT_SECONDS
        self.places = places
        self._actor = actor
        self._engine = engine
        self._record_text = record_text
        self._monitors = Monitors(actor.broadcast, labels)
        self.ended: Counter[Labels] = Counter()
        """Ends on record since the process started, by finish reason."""
        self.quotas = Quotas(running, clock=clock)
        self._tokens: Counter[Labels] = Counter()
        self._running: dict[asyncio.Task[None], RunningGeneration] = {}
        self._opening: dict[asyncio.Task[Any], tuple[str, int]] = {}
        """Admission under way → whose, and how many generations it admits; texts to score are not counted."""
        self._monitoring: set[asyncio.Task[None]] = set()

    async def open_all(
        self,
        requested: Sequence[Requested],
        *,
        principal: str,
        command_id: str | None = None,
        held: Sequence[Hold] = (),
    ) -> list[RunningGeneration]:
        """Admit generations that belong together, all or none, under fresh ids, and start them. command_id: made from
        their idempotency key. held: by `hold`, which else is called here. Raises the error with which the rules refuse
        one, and what `hold` raises."""
        own = holding([[each] for each in requested], held or self.hold(requested, principal=principal))
        opened = await self._opened(own, None, principal, command_id)
        return [each for party in opened for each in party]

    def hold(self, *requests: Sequence[Requested], principal: str) -> list[Hold]:
        """What requests need that belong together, for all of them; each is to be ended, or given to `open_all`. Raises
        `BadRequestError`, `MailboxFullError`, `QuotaExceededError`."""
        if self.places is not None and (most := max(map(len, requests))) > max(1, self.places):
            raise BadRequestError(f"{most} texts in a request; at most {self.places} are made at once", param="n")
        needs = [each.need for request in requests for each in request]
        self.quotas.check(principal, needs)
        taken = self.quotas.taken
        for request in requests if self.places is not None else ():
            if not has_place(taken, principal, len(request), self.places or 0):
                raise self.quotas.full(principal, "too many generations are waiting", self._ahead)
            taken[principal] += len(request)
        return self.quotas.hold(principal, needs)

    @property
    def _ahead(self) -> int:
        """The running ones end next. By the time a client that is refused returns, those that wait now should be
        gone."""
        return self.waiting + sum(count for _, count in self._opening.values())

    @contextlib.contextmanager
    def reading(self, principal: str, tokens: int) -> Iterator[None]:
        """Entered to read prompts of so many tokens, which are not recorded. Raises as `open_all`."""
        with self.quotas.reading(principal, tokens):
            try:
                yield
            except MailboxFullError as error:
                raise self.quotas.full(principal, error.detail, self._ahead) from None

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
        needs = [each.need for party in parties for each in party]
        self.quotas.check(principal, needs, "measuring")
        if (ahead := self.quotas.held["measuring"] + len(needs) - MOST_SCORED) > 0:
            raise self.quotas.full(principal, "too many texts are waiting to be scored", ahead, "measuring")
        held = holding(parties, self.quotas.hold(principal, needs, "measuring"))
        return await self._opened(held, baseline, principal, command_id)

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
            opening.add_done_callback(abandon_opened)
            raise

    @property
    def states(self) -> Counter[Labels]:
        """Texts that are made, by principal: `running`, or `waiting` for that."""
        return states(self._running.values()) + Counter(
            (name, "waiting") for name, count in self._opening.values() for _ in range(count)
        )

    @property
    def tokens(self) -> Counter[Labels]:
        """Tokens since the process started: `prompt` and `generated`."""
        under_way = sum(len(generation.made) for generation in self._running.values())
        return self._tokens + Counter({("generated",): under_way})

    @property
    def waiting(self) -> int:
        """Generations without a token yet; texts to score that have not begun. Those of runs hold nobody up."""
        return sum(generation.waits and not generation.background for generation in self._running.values())

    @property
    def running(self) -> int:
        """Further ones, without a recorded end."""
        return sum(not generation.waits for generation in self._running.values())

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

        try:
            requests = [self._request(each) async for each in in_turns(each for party in parties for each in party)]
            await self._actor.admit(requests, principal=principal, begin=begin, command_id=command_id)
        finally:
            for each in (each for party in parties[len(opened) :] for each in party):
                each.let_go()
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
            generation = RunningGeneration(event, payload, stream, weights, hold=each.hold, background=each.background)
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
        generation.let_go()
        self._tokens["generated",] += len(generation.made)

    async def _run(self, generation: RunningGeneration, token_ids: tuple[int, ...]) -> None:
        """Record the end of a generation, then deliver it."""
        ended = await end_of(
            generation,
            len(token_ids),
            deadline=lambda: self.deadline_seconds,
            stop_wait_seconds=self.stop_wait_seconds,
        )
        if isinstance(ended, DeviceLostError):
            self._actor.report(ev.GpuLost(detail=ended.detail))
        record = record_of(generation.event, generation.started, token_ids, ended)
        if isinstance(ended, Finished) and ended.faulted is not None:
            fault = ev.Problem(code=ended.error_code or "internal", detail=ended.error_detail or "the SAE failed")
            self._actor.report(SaeFailed(ended.faulted, fault))
        try:
            record = await put_on_record(
                self._actor, generation, record, token_ids, ended, with_texts=self._record_text
            )
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
