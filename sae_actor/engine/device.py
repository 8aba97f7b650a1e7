"""The device thread: the only one that runs the model or changes what is on the device.

    inbox:  jobs (swap a model, place or free an SAE) and new texts, in order
    then:   one step of one running text, round robin; and the inbox again

Few texts run at once (each has a key-value cache), the rest wait in order. A job waits for one step at most.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch

from ..domain.refs import FinishReason
from ..errors import DeviceLostError, ModelNotLoadedError, SAEError
from .generation import RunningText
from .worker import Worker

T = TypeVar("T")


class DeviceThread(Worker):
    """Runs jobs and texts. Its deques belong to the thread itself; everyone else goes through `call` and `start`."""

    def __init__(self, *, max_running: int, threads: int | None) -> None:
        self._max_running = max_running
        self._threads = threads
        self._running: deque[RunningText] = deque()
        self._waiting: deque[RunningText] = deque()
        self.lost: DeviceLostError | None = None
        """Set once the device cannot be used any more: texts fail, and jobs are refused."""
        super().__init__("sae-actor-device")

    def start(self, text: RunningText) -> None:
        """Admit a text, behind everything that was asked for before."""
        self._inbox.put(lambda: self._admit(text))

    def end(self, which: Callable[[RunningText], bool], reason: FinishReason, error: SAEError | None = None) -> None:
        """End all texts that `which` holds for. Called by jobs."""
        for text in (*self._running, *self._waiting):
            if which(text):
                text.finish(reason, error)
        self._sweep()

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
        self.end(lambda _: True, "error", ModelNotLoadedError("the engine was stopped"))

    def _do_jobs(self) -> bool:
        """Empty the inbox; wait for something in it while no text runs. False at the end."""
        while True:
            try:
                job = self._inbox.get(block=not self._running)
            except queue.Empty:
                return True
            if job is None:
                return False
            job()
            del job  # or what it made would be held until the next one

    def _one_step(self) -> None:
        text = self._running.popleft()
        self._running.append(text)
        try:
            text.step()
        except DeviceLostError as error:
            self._lose(error.detail)
        for waiting in self._waiting:
            if waiting.due:
                waiting.end_due()
        self._sweep()

    def _admit(self, text: RunningText) -> None:
        if self.lost is not None:
            text.fail(DeviceLostError(self.lost.detail))
            return
        self._waiting.append(text)
        self._sweep()

    def _sweep(self) -> None:
        """Let go of texts that are over and take waiting ones into their places."""
        if any(text.over for text in (*self._running, *self._waiting)):
            self._running = deque(text for text in self._running if not text.over)
            self._waiting = deque(text for text in self._waiting if not text.over)
        while self._waiting and len(self._running) < self._max_running:
            self._running.append(self._waiting.popleft())

    def _lose(self, detail: str) -> None:
        self.lost = DeviceLostError(detail)
        for text in (*self._running, *self._waiting):
            text.fail(DeviceLostError(detail))
        self._sweep()
