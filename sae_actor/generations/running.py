"""One admitted request: its tokens, then its recorded end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.refs import Exclusion
from ..domain.weights import WeightsFiles
from ..errors import (
    InternalError,
    SAEError,
)
from ..ports import Finished, Grammar, Token


@dataclass(frozen=True, slots=True)
class Completed:
    """The recorded end of a generation."""

    finished: Finished
    record: GenerationFinished


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What is reported with each token."""

    logprobs: int | None = None
    """As in `GenerationRequest`."""
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
    """One admitted request. Iterate for its tokens and, last, a `Completed`; an error is raised in its place."""

    def __init__(
        self,
        started: Event,
        payload: GenerationStarted,
        prompt: Sequence[str | None],
        weights: Sequence[WeightsFiles] = (),
    ) -> None:
        """weights: the files of each SAE of the intervention, as the state had them at the beginning."""
        self.weights = tuple(weights)
        self.event = started
        self.position = started.position
        self.principal = started.principal
        self.started = payload
        self.items: asyncio.Queue[Token | Completed | SAEError] = asyncio.Queue()
        self.made: list[Token] = []
        self.written = [*prompt]
        """Text of each token, the prompt's first; None if unknown."""
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the reader has gone."""

    def abandon(self) -> None:
        """The reader has gone: stop the generation and free its slot. Harmless after the end."""
        if not self.left.done():
            self.left.set_result(None)

    async def __aiter__(self) -> AsyncGenerator[Token | Completed, None]:
        try:
            while True:
                item = await self.items.get()
                if isinstance(item, SAEError):
                    raise item
                yield item
                if isinstance(item, Completed):
                    return
        finally:
            self.abandon()

    async def result(self) -> Completed:
        """Wait for the end."""
        async with contextlib.aclosing(self.__aiter__()) as items:
            async for item in items:
                if isinstance(item, Completed):
                    return item
        raise InternalError("the generation ended without a result")
