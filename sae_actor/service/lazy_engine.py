"""The lazy engine: torch is imported at the first load, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ..domain.chats import Tokenization
from ..domain.effects import AttachEffect, DetachEffect, LoadModelEffect, Residents
from ..domain.refs import Edit, ModelFacts
from ..errors import ModelNotLoadedError
from ..ports import (
    AttachedSae,
    Engine,
    EvaluatedGroup,
    FeatureDetails,
    GenerationRequest,
    GenerationStream,
    Grammar,
    ModelSize,
    OnProgress,
    Progress,
    ReadGroup,
    TextGroup,
    Tokenized,
    TokenizerInfo,
)


class FetchModel(Protocol):
    """Fetches the files of a model (id or path, revision) to this machine; without `weights` only its settings."""

    def __call__(
        self,
        model: str,
        revision: str,
        progress: OnProgress,
        *,
        weights: bool = True,
        quantization: str | None = None,
        device: str = "auto",
    ) -> Awaitable[None]: ...


class LazyEngine:
    """The port `Engine`. `make` makes the engine on a worker thread at the first load; before that nothing is loaded.

    `fetch` is called before the engine looks for a model's files. It works in its own process, because the engine's
    thread cannot be interrupted while it waits for a network.
    """

    def __init__(self, make: Callable[[], Engine], fetch: FetchModel) -> None:
        self._make = make
        self._fetch = fetch
        self._engine: Engine | None = None
        self._making: asyncio.Task[Engine] | None = None

    async def load_model(self, effect: LoadModelEffect, progress: OnProgress) -> ModelFacts:
        engine = await self._made()
        await self._fetch(
            effect.model, effect.revision, progress, quantization=effect.quantization, device=effect.device
        )
        return await engine.load_model(effect, progress)

    async def model_size(
        self, model: str, revision: str, dtype: str, device: str, reserved: int, *, quantization: str | None = None
    ) -> ModelSize:
        engine = await self._made()
        await self._fetch(model, revision, _unheard, weights=False)
        return await engine.model_size(model, revision, dtype, device, reserved, quantization=quantization)

    async def _made(self) -> Engine:
        if self._engine is None:
            self._making = making = self._making or asyncio.create_task(asyncio.to_thread(self._make))
            try:
                self._engine = await asyncio.shield(making)
            finally:
                if making.done() and self._making is making:
                    # After a failure the next load tries again.
                    self._making = None
        return self._engine

    async def attach(self, effect: AttachEffect, folder: str) -> AttachedSae:
        return await self._loaded().attach(effect, folder)

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        return 0 if self._engine is None else await self._engine.detach(effect, drain_seconds)

    def retain(self, residents: Residents) -> None:
        if self._engine is not None:
            self._engine.retain(residents)

    async def raw(self, attach_position: int, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        return await self._loaded().raw(attach_position, edits)

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        return await self._loaded().feature(attach_position, feature)

    async def tokenize(
        self,
        prompt: str | Sequence[dict[str, str]] | Sequence[int],
        how: Tokenization | None = None,
        *,
        any_length: bool = False,
    ) -> Tokenized:
        return await self._loaded().tokenize(prompt, how, any_length=any_length)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._loaded().detokenize(token_ids)

    async def tokenizer_info(self) -> TokenizerInfo:
        return await self._loaded().tokenizer_info()

    async def grammar(self, schema: str) -> Grammar:
        return await self._loaded().grammar(schema)

    def generate(self, request: GenerationRequest) -> GenerationStream:
        return self._loaded().generate(request)

    async def evaluate(self, group: TextGroup) -> EvaluatedGroup:
        return await self._loaded().evaluate(group)

    async def read_group(self, group: TextGroup) -> ReadGroup:
        return await self._loaded().read_group(group)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise ModelNotLoadedError("no model is loaded", status="none")
        return self._engine


def _unheard(_: Progress) -> None:
    """Ignore the progress: settings are fetched in a moment."""
