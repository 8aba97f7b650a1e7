"""`TorchEngine`: the port `Engine` on torch and transformers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..domain.effects import AttachEffect, DetachEffect, LoadModelEffect, Residents
from ..domain.refs import Edit, ModelFacts
from ..domain.state import SaeLocation
from ..errors import (
    DeviceLostError,
    FeatureOutOfRangeError,
    MailboxFullError,
    ModelNotLoadedError,
    SAENotAttachedError,
)
from ..formats.settings.statistics import Statistics, read_statistics
from ..ports import (
    AttachedSae,
    FeatureDetails,
    GenerationRequest,
    GenerationStream,
    ModelSize,
    OnProgress,
    ProfiledFeatures,
)
from ..sae.overflow import refuse_overflow
from ..sae.units import resolve_units
from .decoding.generation import Generation
from .decoding.scheduler import SchedulerLimits
from .decoding.side_by_side import Alike, SideBySide, alike, parties
from .device_thread import DeviceThread
from .engine_tokenizer import EngineTokenizer
from .interventions.hooks import PreparedIntervention
from .measuring.measurements import EngineMeasurements, Measurements
from .memory import available, check_room
from .model.loading import LoadedModel, fit, load_model, move, release
from .model.sizes import model_size, with_free_memory
from .request_checks import check_requests, most_beside
from .saes.at_rest import resolved_at_rest
from .saes.feature_details import feature_details
from .saes.prepared import prepared
from .saes.residents import Resident, free, is_mapped, load_resident, place
from .settings import EngineSettings
from .worker import Worker

logger = logging.getLogger(__name__)


class TorchEngine(EngineTokenizer, EngineMeasurements):
    """One model, the SAEs on it, generations.

    The model and the residents are read and changed on the device thread alone; the event loop holds the streams.
    Only `_model` is also read (never changed) on the loop, to refuse early.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self._settings = settings or EngineSettings()
        limits = SchedulerLimits(running=self._settings.max_running, prompt_tokens=self._settings.prompt_tokens)
        self._device = DeviceThread(limits, self._settings.threads)
        self._loader = Worker("sae-actor-loader")
        self._tokenizer = Worker("sae-actor-tokenizer")
        self._grammars = Worker("sae-actor-grammars")
        self._model: LoadedModel | None = None
        self._residents: dict[int, Resident] = {}
        self._measurements = Measurements(
            self._device, lambda: self._model, self._residents, self._settings.prompt_tokens
        )
        self._folders: dict[int, str] = {}
        """attach_position → folder of the SAE; its statistics are read on request."""
        self._streams: dict[GenerationStream, frozenset[int]] = {}
        """Of what has not ended: attach_position of every SAE that it needs."""
        self._beside = 0
        """Of them, those of texts to score and of runs, which take nobody's place."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dropping: set[int] = set()
        self._load_cancelled = threading.Event()
        self._closed = False

    # — the model —

    async def load_model(self, effect: LoadModelEffect, progress: OnProgress) -> ModelFacts:
        """See the port. The old model goes first: two may not fit."""
        if self._model is not None and self._model.position == effect.request_position:
            return self._model.facts
        await self._device.run(self._drop_model, "freeing the model")
        self._load_cancelled = cancelled = threading.Event()
        try:
            loaded = await self._loader.run(partial(load_model, effect, progress, cancelled), "loading the model")
            return await self._device.run(partial(self._install, loaded), "moving the model to the device")
        except asyncio.CancelledError:
            # The worker ends at its next stage. A model installed meanwhile is freed too.
            cancelled.set()
            self._in_background(self._device.run(partial(self._drop_model, effect.request_position), "freeing"))
            raise

    async def model_size(
        self, model: str, revision: str, dtype: str, device: str, reserved: int, *, quantization: str | None = None
    ) -> ModelSize:
        look = partial(model_size, model, revision, dtype, device, quantization)
        size = await self._loader.run(look, "measuring a model")
        return await self._device.run(partial(self._with_free_memory, size, reserved), "measuring the device's memory")

    def _with_free_memory(self, size: ModelSize, reserved: int) -> ModelSize:
        """Add the memory that another model would find: the loaded one and its SAEs are removed first."""
        free = available(torch.device(size.device))
        if free is not None and self._model is not None and str(self._model.device) == size.device:
            held = sum(resident.device_bytes for resident in self._residents.values())
            free += self._model.facts.memory_bytes + self._device.scheduler.cache_used + held
        return with_free_memory(size, free, reserved, self._settings.cache_bytes)

    def _install(self, loaded: LoadedModel) -> ModelFacts:
        move(loaded)
        fit(loaded, self._settings.cache_bytes)
        self._device.scheduler.use(loaded.runner, loaded.cache_bytes)
        self._model = loaded
        return loaded.facts

    def _drop_model(self, position: int | None = None) -> None:
        """Free the model (if `position` is given, only that one); generations end with an error."""
        if self._model is None or (position is not None and self._model.position != position):
            return
        device, self._model = self._model.device, None
        self._device.scheduler.end(lambda _: True, "error", ModelNotLoadedError("the model was unloaded"))
        self._device.background.end(lambda: ModelNotLoadedError("the model was unloaded"))
        self._device.scheduler.use(None)
        release(device)

    # — SAEs —

    async def attach(self, effect: AttachEffect, folder: str) -> AttachedSae:
        at = effect.request_position
        there = self._residents.get(at)
        if there is None:
            model = self._loaded()
            if not is_mapped(effect, model.facts):  # mapped files need no memory of their own
                await self._device.run(partial(self._check_room, effect, model), "measuring the device's memory")
            load = partial(load_resident, effect, folder, model.facts)
            try:
                # In a list that is emptied: the frames that an error passes hold no SAE.
                loaded = [await self._loader.run(load, "loading the SAE")]
                there = await self._device.run(partial(self._place, loaded, model), "moving the SAE to the device")
            except asyncio.CancelledError:
                self._in_background(self._device.run(partial(self._free, at), "freeing the SAE"))
                raise
        self._folders[at] = folder
        memory = effect.sae.memory_bytes(there.dtype)
        return AttachedSae(memory_bytes=memory, device_bytes=there.device_bytes, dtype=there.dtype)

    def _check_room(self, effect: AttachEffect, model: LoadedModel) -> None:
        promised = max(0, model.cache_bytes - self._device.scheduler.cache_used)
        check_room(effect.sae.memory_bytes(effect.dtype), model.device, promised)

    def _place(self, loaded: list[Resident], model: LoadedModel) -> Resident:
        resident = loaded.pop()
        if self._model is not model:
            raise ModelNotLoadedError("the model was unloaded while the SAE was loaded")
        for point in (resident.hook_point, resident.written_at):
            model.architecture.hook(point)  # refuses what cannot be computed
        place(resident, model.device)
        self._residents[resident.position] = resident
        return resident

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        return await self._drop(effect.attach_position, drain_seconds)

    async def _drop(self, position: int, drain_seconds: float) -> int:
        users = [stream.finished for stream, uses in self._streams.items() if position in uses]
        if users and position in self._residents:
            await asyncio.wait(users, timeout=drain_seconds)
        self._folders.pop(position, None)
        return await self._device.run(partial(self._free, position), "freeing the SAE")

    def _free(self, position: int) -> int:
        self._device.scheduler.forget(position)
        self._device.background.end(lambda: SAENotAttachedError("the SAE was detached"), uses=position)
        return free(self._residents, position)

    def retain(self, residents: Residents) -> None:
        """See the port. SAEs that are dropped drain like those that are detached."""
        if self._model is not None and self._model.position != residents.model:
            drop = partial(self._drop_model, self._model.position)
            self._in_background(self._device.run(drop, "freeing the model"))
        for position in set(self._residents) - set(residents.saes) - self._dropping:
            self._dropping.add(position)
            self._in_background(self._drop_unwanted(position))

    async def _drop_unwanted(self, position: int) -> None:
        try:
            await self._drop(position, self._settings.drain_seconds)
        finally:
            self._dropping.discard(position)

    async def raw(
        self, attach_position: int, edits: tuple[Edit, ...], profiled: ProfiledFeatures | None = None
    ) -> tuple[Edit, ...]:
        statistics = Statistics()
        folder = self._folders.get(attach_position)
        if folder is not None and any(edit.unit in ("max", "norm") for edit in edits):
            statistics = await self._tokenizer.run(partial(read_statistics, folder), "reading the SAE's statistics")
        return await self._device.run(
            partial(self._resolved, attach_position, edits, statistics, profiled), "resolving units"
        )

    def _resolved(
        self, position: int, edits: tuple[Edit, ...], statistics: Statistics, profiled: ProfiledFeatures | None
    ) -> tuple[Edit, ...]:
        resident = self._residents.get(position)
        if resident is None:
            raise SAENotAttachedError("the SAE is not on the device")
        # The median was measured at the SAE's training point; elsewhere |x| differs.
        known = statistics.median_norm or resident.sae.spec.median_norm
        profiled = profiled or ProfiledFeatures()
        median_norm = (known if resident.where_trained else None) or profiled.median_norm
        found = resolve_units(resident.sae, edits, maxima=profiled.maxima | statistics.maxima, median_norm=median_norm)
        written_in = None if self._model is None else self._model.written_in(resident.written_at)
        refuse_overflow(resident.sae, found, written_in)
        return found

    async def raw_on_disk(self, location: SaeLocation, folder: str, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        """See the port."""
        return await self._loader.run(partial(resolved_at_rest, location, folder, edits), "resolving units")

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        folder = self._folders.get(attach_position)
        statistics = Statistics()
        if folder is not None:
            statistics = await self._tokenizer.run(partial(read_statistics, folder), "reading the SAE's statistics")
        return await self._device.run(partial(self._details, attach_position, feature, statistics), "reading weights")

    def _details(self, position: int, feature: int, statistics: Statistics) -> FeatureDetails:
        resident = self._residents.get(position)
        if resident is None:
            raise SAENotAttachedError("the SAE is not on the device")
        d_sae = resident.sae.spec.d_sae
        if not 0 <= feature < d_sae:
            raise FeatureOutOfRangeError(f"feature {feature} is not below {d_sae}", feature=feature, d_sae=d_sae)
        return feature_details(resident.sae, feature, resident.written_at, statistics, self._model)

    # — generations —

    def limit(self, running: Mapping[str, int]) -> None:
        self._device.scheduler.waiting.most = dict(running)

    def generate(self, request: GenerationRequest) -> GenerationStream:
        """See the port. The generation is in the queue when this returns. `ModelNotLoadedError`, `MailboxFullError`
        (with `retry_after`, seconds), `BadRequestError` for a request that no model could run."""
        model = self._accepting([request])
        taken = len(self._streams) - self._beside
        if not request.background and taken >= self._settings.max_running + self._settings.max_waiting:
            raise MailboxFullError("too many generations are waiting", retry_after=1)
        stream = GenerationStream(self._over if request.background else self._streams.pop)
        self._device.start(self._text(model, Alike(request, (stream,)), SideBySide(compared=False)))
        self._beside += request.background
        return stream

    def score(
        self, requests: Sequence[GenerationRequest], *, baseline: int | None = None
    ) -> tuple[GenerationStream, ...]:
        """See the port."""
        model = self._accepting(requests)
        streams = tuple(GenerationStream(self._over) for _ in requests)
        sets = alike(requests, streams, baseline)
        compared = baseline is not None
        most = most_beside(requests[0], model, self._settings.max_running, compared=compared and len(sets) > 1)
        for party in parties(sets, most, compared=compared):
            beside = SideBySide[Generation](compared=compared)
            self._device.start(*[self._text(model, each, beside) for each in party])
        self._beside += len(streams)
        return streams

    def _accepting(self, requests: Sequence[GenerationRequest]) -> LoadedModel:
        model = self._loaded()
        if self._device.lost is not None:
            raise DeviceLostError(self._device.lost.detail)
        check_requests(requests, model)
        return model

    def _text(self, model: LoadedModel, wanted: Alike, beside: SideBySide[Generation]) -> Generation:
        apply, made = partial(self._applied, model), self._device.made
        text = Generation(
            wanted.request, model.tokenizer, model.cache_size, apply,
            streams=wanted.streams, made=made, uses=wanted.uses, beside=beside,
        )  # fmt: skip
        self._streams.update(dict.fromkeys(wanted.streams, text.uses))
        return text

    def _over(self, stream: GenerationStream) -> None:
        """A text that was to be scored, or a run's, has ended."""
        self._streams.pop(stream)
        self._beside -= 1

    def _applied(self, model: LoadedModel, request: GenerationRequest) -> PreparedIntervention | None:
        """The request's intervention, ready; None if it changes nothing. On the device thread."""
        if self._model is not model:
            raise ModelNotLoadedError("the model was unloaded before the generation began")
        return prepared(request, model, self._residents)

    # — the end —

    async def close(self) -> None:
        """See the port. What still loads is given up; its thread ends by itself."""
        if self._closed:
            return
        self._closed = True
        self._load_cancelled.set()
        for task in tuple(self._tasks):
            task.cancel()
        with contextlib.suppress(DeviceLostError):
            await self._device.run(self._drop_everything, "freeing the device")
        ends = (self._tokenizer, 1.0), (self._grammars, 0.0), (self._loader, 0.0), (self._device, 5.0)
        for worker, seconds in ends:
            await asyncio.to_thread(worker.stop, seconds)

    def _drop_everything(self) -> None:
        self._drop_model()
        for position in tuple(self._residents):
            free(self._residents, position)

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise ModelNotLoadedError("no model is loaded")
        return self._model

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("memory of the device could not be freed: %s", error)
