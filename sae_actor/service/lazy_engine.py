"""The lazy engine: torch is imported at the first load, off the event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from ..domain.effects import DetachEffect, LoadModelEffect, Residents
from ..domain.refs import Edit, ModelFacts
from ..domain.state import SaeLocation
from ..errors import ModelNotLoadedError
from ..ports import Engine, ModelSize, OnProgress, ProfiledFeatures, Progress


class LazyEngine:
    """The port `Engine`. `make` makes the engine on a worker thread at the first load; before that nothing is loaded.

    `fetch` is `HuggingFaceHub.fetch_model`, called before the engine looks for a model's files. It works in its own
    process, because the engine's thread cannot be interrupted while it waits for a network.
    """

    def __init__(self, make: Callable[[], Engine], fetch: Callable[..., Awaitable[None]]) -> None:
        self._make = make
        self._fetch = fetch
        self._engine: Engine | None = None
        self.profiled: Callable[[int, Iterable[int]], Awaitable[ProfiledFeatures | None]] | None = None
        """What profiles found of features of an SAE, by its attach_position."""
        self._making: asyncio.Task[Engine] | None = None
        self._limits: Mapping[str, int] = {}

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
                self._engine.limit(self._limits)
                # torch and transformers bring 300,000 objects that stay; to look through them for cycles is 0.2 s of
                # every full collection, in which nothing else runs. No model is there yet: one may have to go.
                gc.freeze()
            finally:
                if making.done() and self._making is making:
                    # After a failure the next load tries again.
                    self._making = None
        return self._engine

    async def raw(
        self, attach_position: int, edits: tuple[Edit, ...], profiled: ProfiledFeatures | None = None
    ) -> tuple[Edit, ...]:
        """With what profiles found, for units that need it."""
        if self._engine is None:
            raise ModelNotLoadedError("no model is loaded", status="none")
        asked = [edit.feature for edit in edits if edit.unit in ("max", "norm")]
        if profiled is None and asked and self.profiled is not None:
            profiled = await self.profiled(attach_position, asked)
        return await self._engine.raw(attach_position, edits, profiled)

    def limit(self, running: Mapping[str, int]) -> None:
        """Of the engine, once there is one."""
        self._limits = running
        if self._engine is not None:
            self._engine.limit(running)

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        return 0 if self._engine is None else await self._engine.detach(effect, drain_seconds)

    def retain(self, residents: Residents) -> None:
        if self._engine is not None:
            self._engine.retain(residents)

    async def raw_on_disk(self, location: SaeLocation, folder: str, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        return await (await self._made()).raw_on_disk(location, folder, edits)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the engine's. Raises `ModelNotLoadedError` before the first load."""
        if self._engine is None:
            raise ModelNotLoadedError("no model is loaded", status="none")
        return getattr(self._engine, name)


def _unheard(_: Progress) -> None:
    """Ignore the progress: settings are fetched in a moment."""
