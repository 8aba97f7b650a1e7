"""The device thread: the only one that runs the model or changes what is on the device.

    inbox:  jobs (swap a model, place or free an SAE) and new texts, in order
    then:   one step of the texts that run (`batch`); and the inbox again

A job waits for one step at most.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import DeviceLostError, ModelNotLoadedError
from .batch import Batch, Limits
from .generation import RunningText
from .worker import Worker

T = TypeVar("T")


class DeviceThread(Worker):
    """Runs jobs and texts. `batch` belongs to the thread itself; everyone else goes through `run` and `start`."""

    def __init__(self, limits: Limits, threads: int | None) -> None:
        self.batch = Batch(limits)
        self._threads = threads
        self.lost: DeviceLostError | None = None
        """Set once the device cannot be used any more: texts fail, and jobs are refused."""
        super().__init__("sae-actor-device")

    def start(self, text: RunningText) -> None:
        """Admit a text, behind everything that was asked for before."""
        self._inbox.put(lambda: self._admit(text))

    async def run(self, job: Callable[[], T], doing: str) -> T:
        """Do `job` on this thread. `DeviceLostError` if the device is lost, before or by it."""

        def guarded() -> T:
            if self.lost is not None:
                raise DeviceLostError(self.lost.detail)
            return job()

        try:
            return await super().run(guarded, doing)
        except DeviceLostError as error:
            detail = error.detail
            self._inbox.put(lambda: self._lose(detail))
            raise

    def _loop(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._do_jobs():
                self._one_step()
        self.batch.end(lambda _: True, "error", ModelNotLoadedError("the engine was stopped"))

    def _do_jobs(self) -> bool:
        """Empty the inbox; wait for something in it while no text runs. False at the end."""
        while True:
            try:
                job = self._inbox.get(block=self.batch.idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            job()
            del job  # or what it made would be held until the next one

    def _one_step(self) -> None:
        try:
            self.batch.step()
        except DeviceLostError as error:
            self._lose(error.detail)

    def _admit(self, text: RunningText) -> None:
        if self.lost is not None:
            text.fail(DeviceLostError(self.lost.detail))
        else:
            self.batch.admit(text)

    def _lose(self, detail: str) -> None:
        self.lost = DeviceLostError(detail)
        self.batch.fail(self.lost)
