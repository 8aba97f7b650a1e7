"""Measurements as the event loop asks for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias, TypeVar

from ...errors import BadRequestError, ModelNotLoadedError, SAENotAttachedError, SAEUnsupportedError
from ...ports import EvaluatedGroup, ReadGroup, TextGroup
from ..device_thread import DeviceThread
from ..model.loading import LoadedModel
from ..saes.residents import Resident
from .evaluation import evaluate
from .reading import read

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

    async def _measured(self, group: TextGroup, measure: Measure[T]) -> T:
        def pieces() -> Generator[None, None, T]:
            model, resident = self._model(), self._residents.get(group.attach_position)
            if model is None:
                raise ModelNotLoadedError("no model is loaded")
            if resident is None:
                raise SAENotAttachedError("the SAE is not on the device")
            if not resident.sae.encodes:
                raise SAEUnsupportedError("vectors have no encoder: they can be written, not read")
            longest, vocabulary = max(map(len, group.texts)), model.tokenizer.vocabulary
            if longest > model.facts.context_length:
                raise BadRequestError(f"a text of {longest} tokens is longer than the model's context")
            if any(not 0 <= token < vocabulary for text in group.texts for token in text):
                raise BadRequestError("a token id is outside the vocabulary")
            return measure(group, model, resident, self._prompt_tokens)

        return await self._device.work(pieces, "measuring texts", group.attach_position)
