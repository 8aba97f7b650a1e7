"""Admitted requests: their tokens, then their recorded ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.refs import Exclusion
from ..domain.weights import WeightsFiles
from ..errors import SAEError
from ..ports import Finished, GenerationStream, Grammar, Token, news_of


@dataclass(frozen=True, slots=True)
class Completed:
    """The recorded end of a generation."""

    finished: Finished
    record: GenerationFinished


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What is reported with each token."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    """Both as in `GenerationRequest`."""
    top_k_features: int = 0
    """This many activations of each SAE that the request watches."""
    exclude: tuple[Exclusion, ...] = ("sink",)
    """Positions without any of them."""
    prompt: Sequence[str] = ()
    """Text of the prompt's tokens, for what is monitored."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A text that is asked for."""

    ask: Callable[[str], AdmitGeneration]
    """Makes the request under a generation id."""
    token_ids: Sequence[int]
    """Of its prompt."""
    tell: TokenOptions = field(default_factory=TokenOptions)
    grammar: Grammar | None = None
    """Of its response format."""
    schema: str | None = None
    """The schema of that, for the record."""


class RunningGeneration:
    """One admitted request: its stream, and its end once that is on record."""

    def __init__(
        self, started: Event, payload: GenerationStarted, stream: GenerationStream, weights: Sequence[WeightsFiles] = ()
    ) -> None:
        """weights: the files of each SAE of the intervention, as the state had them at the beginning."""
        self.weights = tuple(weights)
        self.event = started
        self.position = started.position
        self.principal = started.principal
        self.started = payload
        self.stream = stream
        self.left: asyncio.Future[SAEError | None] = stream.ended.get_loop().create_future()
        """Done once nobody waits for the rest: the reader has gone, or is to get this error for the end."""
        self._recorded: asyncio.Future[Completed | SAEError] = stream.ended.get_loop().create_future()

    @property
    def made(self) -> list[Token]:
        """Its tokens so far."""
        return self.stream.tokens

    def at(self, position: int) -> Token | Completed | SAEError | None:
        """What a reader gets who has read so much: the next token, or the recorded end after all of them."""
        if position < len(self.made):
            return self.made[position]
        return self._recorded.result() if self._recorded.done() else None

    def complete(self, end: Completed | SAEError) -> None:
        """The end is on record."""
        self._recorded.set_result(end)
        self.stream.wake()

    def abandon(self, why: SAEError | None = None) -> None:
        """Stop the generation and free its slot: the reader has gone, or gets the error `why`. Harmless after the
        end."""
        if not self.left.done():
            self.left.set_result(why)

    @property
    def cut_short(self) -> SAEError | None:
        """The error that a reader gets if the generation was cancelled."""
        return self.left.result() if self.left.done() else None

    async def result(self) -> Completed:
        """Wait for the end; an error is raised in its place."""
        try:
            end = await asyncio.shield(self._recorded)
        finally:
            self.abandon()
        if isinstance(end, SAEError):
            raise end
        return end


async def interleaved(texts: Sequence[RunningGeneration]) -> AsyncIterator[tuple[int, Token | Completed]]:
    """Tokens and, last, the end of each, as they come, with the index of the generation. The first error is raised."""
    unread = dict.fromkeys(range(len(texts)), 0)
    while unread:
        found = [(index, item) for index, position in unread.items() if (item := texts[index].at(position)) is not None]
        for index, item in found:
            if isinstance(item, SAEError):
                raise item
            unread[index] += 1
            if isinstance(item, Completed):
                del unread[index]
            yield index, item
        if not found:
            await news_of([texts[index].stream for index in unread])


async def ends(texts: Sequence[RunningGeneration]) -> list[Completed]:
    """Wait for all of them; the first error is raised and ends the others."""
    try:
        return await asyncio.gather(*(text.result() for text in texts))
    except SAEError:
        abandon(texts)
        raise


def abandon(texts: Sequence[RunningGeneration]) -> None:
    for text in texts:
        text.abandon()
