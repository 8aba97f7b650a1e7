"""Measurements as the event loop asks for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias, TypeVar

from ...errors import BadRequestError, ModelNotLoadedError, SAENotAttachedError, SAEUnsupportedError
from ...ports import ComparedRows, EvaluatedGroup, ReadGroup, TextGroup
from ..device_thread import DeviceThread
from ..model.loading import LoadedModel
from ..saes.residents import Resident
from .evaluation import evaluate
from .reading import read
from .rows import compare

T = TypeVar("T")
Measure: TypeAlias = Callable[[TextGroup, LoadedModel, Resident, int], Generator[None, None, T]]


class Measurements:
    """The port's measurements; `model` gives the loaded one, `residents` belongs to the device thread."""

    def __init__(
        self,
        device: DeviceThread,
        model: Callable[[], LoadedModel | None],
        residents: Mapping[int, Resident],
        prompt_tokens: int,
    ) -> None:
        self._device = device
        self._model = model
        self._residents = residents
        self._prompt_tokens = prompt_tokens

    async def evaluate(self, group: TextGroup) -> EvaluatedGroup:
        return await self._measured(group, evaluate)

    async def read_group(self, group: TextGroup) -> ReadGroup:
        return await self._measured(group, read)

    async def compare_rows(self, attach_position: int) -> ComparedRows:
        def pieces() -> Generator[None, None, ComparedRows]:
            return compare(self._resident(attach_position).sae)

        return await self._device.work(pieces, "comparing an SAE's rows", attach_position)

    async def _measured(self, group: TextGroup, measure: Measure[T]) -> T:
        def pieces() -> Generator[None, None, T]:
            model = self._model()
            if model is None:
                raise ModelNotLoadedError("no model is loaded")
            resident = self._resident(group.attach_position)
            longest, vocabulary = max(map(len, group.texts)), model.tokenizer.vocabulary
            if longest > model.facts.context_length:
                raise BadRequestError(f"a text of {longest} tokens is longer than the model's context")
            if any(not 0 <= token < vocabulary for text in group.texts for token in text):
                raise BadRequestError("a token id is outside the vocabulary")
            return measure(group, model, resident, self._prompt_tokens)

        return await self._device.work(pieces, "measuring texts", group.attach_position)

    def _resident(self, attach_position: int) -> Resident:
        """Of an SAE that reads. On the device thread."""
        resident = self._residents.get(attach_position)
        if resident is None:
            raise SAENotAttachedError("the SAE is not on the device")
        if not resident.sae.encodes:
            raise SAEUnsupportedError("vectors have no encoder: they can be written, not read")
        return resident


class EngineMeasurements:
    """The part of the engine that measures; see the port."""

    _measurements: Measurements

    async def evaluate(self, group: TextGroup) -> EvaluatedGroup:
        return await self._measurements.evaluate(group)

    async def read_group(self, group: TextGroup) -> ReadGroup:
        return await self._measurements.read_group(group)

    async def compare_rows(self, attach_position: int) -> ComparedRows:
        return await self._measurements.compare_rows(attach_position)
