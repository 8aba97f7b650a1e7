"""How the adapters perform each effect; each one reports an outcome."""

from __future__ import annotations

import logging
import traceback

from ..domain import events as ev
from ..domain.effects import (
    AttachEffect,
    DeleteEffect,
    DetachEffect,
    DownloadEffect,
    Effect,
    ImportEffect,
    LoadModelEffect,
)
from ..domain.refs import ModelFacts
from ..domain.reports import AttachedSae, EffectDone, EffectFailed, HubSae, Report
from ..errors import DeviceLostError, InternalError, SAEError
from ..ports import Engine, Hub, OnProgress, Progress

logger = logging.getLogger(__name__)


def problem(error: SAEError) -> ev.Problem:
    """An error as it goes on record."""
    return ev.Problem(code=error.code, detail=error.detail, fields=error.fields)


class Performer:
    """Binds effects to the hub and the engine."""

    def __init__(self, engine: Engine, hub: Hub, progress: OnProgress, drain_seconds: float) -> None:
        self._engine = engine
        self.hub = hub
        self._progress = progress
        self._drain_seconds = drain_seconds
        self._under_way: dict[int, int] = {}
        """Bytes downloaded so far, by the position of the request."""
        self._downloaded = 0

    @property
    def downloaded_bytes(self) -> int:
        """Bytes of all downloads since the process started, including failed ones."""
        return self._downloaded + sum(self._under_way.copy().values())

    async def perform(self, effect: Effect) -> Report:
        """Do the effect; an error becomes the report of its failure."""
        try:
            return EffectDone(effect, await self._do(effect))
        except DeviceLostError as error:
            return ev.GpuLost(detail=error.detail)
        except SAEError as error:
            return failed(effect, error)
        except Exception as error:
            # The boundary of supervision: a bug of an adapter ends this effect, not the service.
            cause = "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
            if not isinstance(effect, DownloadEffect):
                # Errors of network libraries may quote a token or a signed URL.
                cause += f": {error}"
            logger.error("%s of request %d failed unexpectedly:\n%s", effect.name, effect.request_position, cause)
            return failed(effect, InternalError(f"{effect.name} failed unexpectedly; the service's log has the cause"))

    async def _download(self, effect: DownloadEffect) -> HubSae:
        at = effect.request_position

        def on_progress(progress: Progress) -> None:
            # From any thread: one assignment, no sum.
            self._under_way[at] = max(self._under_way.get(at, 0), progress.done)
            self._progress(progress)

        try:
            return await self.hub.download(effect, on_progress)
        finally:
            self._downloaded += self._under_way.pop(at, 0)

    async def undo(self, effect: Effect) -> None:
        """Clean up after an effect that is no longer owed; never raises."""
        if not isinstance(effect, DownloadEffect):
            return
        try:
            await self.hub.discard(effect)
        except Exception as error:
            # Files that stay on disk have no record; the effect has ended either way.
            cause = error.detail if isinstance(error, SAEError) else type(error).__name__
            logger.error("what is left of the download of %s could not be removed: %s", effect.sae_id, cause)

    async def _do(self, effect: Effect) -> ModelFacts | HubSae | AttachedSae | int:
        match effect:
            case LoadModelEffect():
                return await self._engine.load_model(effect, self._progress)
            case DownloadEffect():
                return await self._download(effect)
            case ImportEffect():
                return await self.hub.import_(effect)
            case AttachEffect():
                return await self._engine.attach(effect, await self.hub.locate(effect.location))
            case DetachEffect():
                return await self._engine.detach(effect, self._drain_seconds)
            case DeleteEffect():
                return await self.hub.delete(effect)


def failed(effect: Effect, error: SAEError) -> Report:
    """The report of a failed effect."""
    if isinstance(effect, DetachEffect):
        logger.error("detach of %s: %s", effect.sae_id, error.detail)  # not on record: the SAE is gone anyway
    return EffectFailed(effect, problem(error))
