"""Admitted generations: their tokens, then their recorded ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.refs import Exclusion
from ..domain.weights import WeightsFiles
from ..errors import SAEError
from ..limits import AT_A_TIME, in_turns
from ..ports import Finished, GenerationStream, Grammar, Scoring, Token, wait_for_news
from .details import NamedFeature
from .quotas import Hold, Need


@dataclass(frozen=True, slots=True)
class Completed:
    """The recorded end of a generation."""

    finished: Finished
    record: GenerationFinished


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What is reported with each token."""

    logprobs: int | None = None
    """How many of the most probable tokens are reported, as in `GenerationRequest`."""
    prompt_logprobs: int | None = None
    """How many for each token of the prompt, as in `GenerationRequest`."""
    logprobs_of: tuple[int, ...] = ()
    """Tokens whose log probability is reported wherever one is made."""
    top_k_features: int = 0
    """How many activations of each SAE that the request watches."""
    exclude: tuple[Exclusion, ...] = ("sink",)
    """Positions for which no activations are reported."""
    detailed: Sequence[NamedFeature] | None = None
    """What the intervention did at each position is reported, with these features besides those of its edits. None: it
    is not."""
    prompt: Sequence[str] = ()
    """Text of the prompt's tokens, for the events of monitored SAEs."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A requested generation."""

    make_request: Callable[[str], AdmitGeneration]
    """Makes the request for a generation id."""
    token_ids: Sequence[int]
    """The prompt's tokens."""
    options: TokenOptions = field(default_factory=TokenOptions)
    grammar: Grammar | None = None
    """The grammar of its response format."""
    schema: str | None = None
    """The JSON schema of its response format, for the record."""
    scoring: Scoring | None = None
    """Score the prompt and what follows it, instead of making a text."""
    background: bool = False
    """For a run, as in `GenerationRequest`: it may give way, and has no deadline."""
    most: int = 0
    """Tokens that may follow the prompt: they are made or, of a text to score, given."""
    hold: Hold | None = None
    """What it has of the quota of whoever asks, once that is found to suffice."""

    @property
    def need(self) -> Need:
        prompt = len(self.token_ids)
        return Need(prompt, self.most) if self.scoring is None else Need(prompt + self.most)

    def let_go(self) -> None:
        """It was not admitted."""
        if self.hold is not None:
            self.hold.end()


def holding(parties: Sequence[Sequence[Requested]], holds: Sequence[Hold]) -> list[list[Requested]]:
    """The requests with what they hold, in order."""
    following = iter(holds)
    return [[replace(each, hold=next(following)) for each in party] for party in parties]


class RunningGeneration:
    """One admitted generation: its stream, and its end once that is on record."""

    def __init__(
        self,
        started: Event,
        payload: GenerationStarted,
        stream: GenerationStream,
        weights: Sequence[WeightsFiles] = (),
        *,
        hold: Hold | None = None,
        background: bool = False,
    ) -> None:
        """weights: the weights files of each SAE of the intervention, from the state at the beginning. hold: as of
        `Requested`."""
        self.background = background
        self._hold = hold
        if hold is not None and hold.is_timed:
            stream.on_token = hold.token
        self.weights = tuple(weights)
        self.event = started
        self.position = started.position
        self.principal = started.principal
        self.started = payload
        self.stream = stream
        self.left: asyncio.Future[SAEError | None] = stream.finished.get_loop().create_future()
        """Done once nobody waits for the rest: the reader has disconnected, or gets this error as the end."""
        self._recorded: asyncio.Future[Completed | SAEError] = stream.finished.get_loop().create_future()

    @property
    def made(self) -> list[Token]:
        """Its tokens so far."""
        return self.stream.tokens

    @property
    def is_score(self) -> bool:
        """Its text is given, and scored."""
        return self.started.kind == "score"

    @property
    def holds_place(self) -> bool:
        """Texts to score, and those of runs, hold none."""
        return not (self.is_score or self.background)

    @property
    def waits(self) -> bool:
        """It has not begun; or, as far as its reader sees, not made a token."""
        return not (self.stream.begun.done() if self.is_score else self.made)

    def at(self, position: int) -> Token | Completed | SAEError | None:
        """The item at a reader's position: a token, or the recorded end after the last one. None: not there yet."""
        if position < len(self.made):
            return self.made[position]
        return self._recorded.result() if self._recorded.done() else None

    def let_go(self) -> None:
        """It is over: what it held of a quota is free."""
        if self._hold is not None:
            self._hold.end(ran=self.stream.begun.done(), made=len(self.made))

    def complete(self, end: Completed | SAEError) -> None:
        """Give the end to the readers: it is on record, or that failed with this error."""
        self._recorded.set_result(end)
        self.stream.wake()

    def abandon(self, why: SAEError | None = None) -> None:
        """Stop the generation and free its slot: the reader has disconnected, or gets the error `why`. Harmless after
        the end."""
        if not self.left.done():
            self.left.set_result(why)

    @property
    def cut_short(self) -> SAEError | None:
        """The error that a reader gets if the generation was cancelled."""
        return self.left.result() if self.left.done() else None

    def on_end(self, act: Callable[[], object]) -> None:
        """`act` once the end is there, on the event loop."""
        self._recorded.add_done_callback(lambda _: act())

    @property
    def end(self) -> Completed:
        """The end, which is there; raised if it is an error."""
        end = self._recorded.result()
        if isinstance(end, SAEError):
            raise end
        return end

    async def result(self) -> Completed:
        """Wait for the end; raise it if it is an error."""
        try:
            await asyncio.shield(self._recorded)
        finally:
            self.abandon()
        return self.end


async def interleaved(generations: Sequence[RunningGeneration]) -> AsyncIterator[tuple[int, Token | Completed]]:
    """Tokens as they come, and each generation's end after its last token; with the index of the generation. The first
    error is raised."""
    positions = dict.fromkeys(range(len(generations)), 0)
    while positions:
        found = [(index, item) for index, at in positions.items() if (item := generations[index].at(at)) is not None]
        for index, item in found:
            if isinstance(item, SAEError):
                raise item
            positions[index] += 1
            if isinstance(item, Completed):
                del positions[index]
            yield index, item
        if len(found) > 1:
            await asyncio.sleep(0)  # many may be there at once
        if not found:
            await wait_for_news([generations[index].stream for index in positions])


async def ends(generations: Sequence[RunningGeneration]) -> list[Completed]:
    """Wait for all of them; the first error is raised and ends the others."""
    found: dict[int, Completed] = {}
    async for at, end in as_ended(generations):
        found[at] = end
    return [found[at] for at in range(len(generations))]


async def as_ended(generations: Sequence[RunningGeneration]) -> AsyncGenerator[tuple[int, Completed], None]:
    """Each end as it comes, with the index of its generation. The first error is raised; with it, or when nobody waits
    any more, the others end. No task for each: there may be thousands."""
    news: asyncio.Queue[int] = asyncio.Queue()
    try:
        async for at, generation in in_turns(enumerate(generations)):
            generation.on_end(partial(news.put_nowait, at))
        for number in range(len(generations)):
            at = await news.get()
            yield at, generations[at].end
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
    finally:
        abandon(generations)


def states(generations: Iterable[RunningGeneration]) -> Counter[tuple[str, ...]]:
    """Of texts that are made, by principal: `running` or `waiting`."""
    return Counter(
        (each.principal, "running" if each.stream.begun.done() else "waiting")
        for each in generations
        if each.holds_place and not each.stream.finished.done()
    )


def abandon_opened(opening: asyncio.Task[list[list[RunningGeneration]]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        for party in opening.result():
            abandon(party)


def abandon(generations: Sequence[RunningGeneration], first: int = 0) -> None:
    """End those from `first` on, of thousands some at a time: each has an end to be recorded."""
    for generation in generations[first : first + AT_A_TIME]:
        generation.abandon()
    if first + AT_A_TIME < len(generations):
        asyncio.get_running_loop().call_soon(abandon, generations, first + AT_A_TIME)
