"""The device thread: the only one that runs the model or changes what is on the device.

    inbox:  jobs (swap a model, place or free an SAE) and new generations, in order
    then:   one step of the running generations (`scheduler`); and the inbox again

What a step or a job made is appended to the generations' streams in one call of the event loop.

A job waits for at most one step. No job and no step ends the thread: an error ends generations, or the device is lost.
Should the thread end all the same, the device is lost too, and later calls raise that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from ..errors import DeviceLostError, ModelNotLoadedError, SAEError
from ..ports import GenerationStream
from .decoding.generation import Generation, Item
from .decoding.scheduler import Scheduler, SchedulerLimits
from .failures import explained
from .measuring.background import Background, fail
from .worker import Worker

logger = logging.getLogger(__name__)

T = TypeVar("T")

DELIVERED = 64
"""Items that are given to their streams at once."""


class DeviceThread(Worker):
    """Runs jobs and generations. `scheduler` belongs to the thread itself; everyone else goes through `run` and
    `start`."""

    def __init__(self, limits: SchedulerLimits, threads: int | None) -> None:
        self.scheduler = Scheduler(limits)
        self.background = Background()
        self._threads = threads
        self.lost: DeviceLostError | None = None
        """Set once the device cannot be used any more: generations fail, and jobs are refused."""
        self._over = False
        """Set when the thread takes nothing more from its inbox."""
        self._ending = threading.Lock()
        """Held to put something into the inbox, and to set `_over`: nothing enters an inbox that is no longer read."""
        self.made: deque[tuple[GenerationStream, Item]] = deque()
        """What generations made and their streams do not have yet."""
        self._readers: asyncio.AbstractEventLoop | None = None
        super().__init__("sae-actor-device")

    def start(self, *texts: Generation) -> None:
        """Admit generations that run side by side, after everything requested before. Their streams are read on this
        event loop."""
        self._readers = asyncio.get_running_loop()
        self._put(lambda: self._admit(texts))

    async def run(self, job: Callable[[], T], doing: str) -> T:
        """Do `job` on this thread. `DeviceLostError` if the device is lost, before or by it."""

        def guarded() -> T:
            refusal = self._refusal()
            if refusal is not None:
                raise refusal
            try:
                return job()
            finally:
                self._hand_over()

        try:
            return await super().run(guarded, doing)
        except DeviceLostError as error:
            detail = error.detail
            if self.lost is None:
                self._put(lambda: self._lose(detail))
            raise

    async def work(self, pieces: Callable[[], Generator[None, None, T]], doing: str, uses: int) -> T:
        """Do work in pieces, each once nothing is generated. Raises as `run`; uses: attach_position of its SAE."""
        future: Future[T] = Future()

        def begin() -> None:
            failure: SAEError | None = self._refusal()
            if failure is None:
                try:
                    self.background.add(pieces(), future, uses)
                    return
                except Exception as error:  # as of any job
                    failure = explained(error, doing)
            fail(future, failure)

        self._put(begin)
        return await asyncio.wrap_future(future)

    def _put(self, job: Callable[[], None]) -> None:
        """Put it into the inbox. If the thread has ended, run it here: every job checks `_refusal` first."""
        with self._ending:
            if not self._over:
                self._inbox.put(job)
                return
        job()
        self._hand_over()

    def _hand_over(self) -> None:
        """Wake the event loop once for all that was made since."""
        if self.made and self._readers is not None:
            # A loop that is closed has no reader.
            with contextlib.suppress(RuntimeError):
                self._readers.call_soon_threadsafe(self._append)

    def _append(self) -> None:
        """On the event loop. Where thousands of texts end at once, others have their turn in between."""
        for _ in range(min(len(self.made), DELIVERED)):
            stream, item = self.made.popleft()
            stream.append(item)
        if self.made:
            asyncio.get_running_loop().call_soon(self._append)

    def _refusal(self) -> SAEError | None:
        """Why nothing can be done any more."""
        if self.lost is not None:
            return DeviceLostError(self.lost.detail)
        return ModelNotLoadedError("the engine was stopped") if self._over else None

    def _loop(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            logger.exception("the device thread is stopping")
            self.lost = DeviceLostError(f"the device thread ended ({type(error).__name__})")
        finally:
            self._close()

    def _serve(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._do_jobs():
                if self.scheduler.idle and not self.background.idle:
                    self._work()
                else:
                    self._attempt(self.scheduler.step, "making texts")
        self.scheduler.end(lambda _: True, "error", ModelNotLoadedError("the engine was stopped"))
        self.background.end(lambda: ModelNotLoadedError("the engine was stopped"))

    def _close(self) -> None:
        """Fail jobs that will never run."""
        with self._ending:
            self._over = True
        if self.lost is not None:
            lost = self.lost.detail
            self.scheduler.fail(self.lost)
            self.background.end(lambda: DeviceLostError(lost))
        while not self._inbox.empty():
            job = self._inbox.get()
            if job is not None:
                job()
        self._hand_over()

    def _do_jobs(self) -> bool:
        """Empty the inbox; wait for something in it while nothing runs. False at the end."""
        while True:
            self._hand_over()
            try:
                job = self._inbox.get(block=self.scheduler.idle and self.background.idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._attempt(job, "a job of the device")
            del job  # or what it made would be held until the next one

    def _work(self) -> None:
        """One piece of background work; its error ends that work alone."""
        future = self.background.first
        try:
            self.background.step()
            return
        except DeviceLostError as error:
            failure: SAEError = error
        except Exception as error:  # an error of torch ends the measurement, not the thread
            failure = explained(error, "measuring texts")
        # Outside of the block above: the traceback and the tensors in its frames are gone.
        if isinstance(failure, DeviceLostError):
            self._lose(failure.detail)
        fail(future, failure)

    def _attempt(self, act: Callable[[], None], doing: str) -> None:
        """Run `act`; its error ends the running generations, not the thread."""
        try:
            act()
            return
        except DeviceLostError as error:
            failure: SAEError = error
        except Exception as error:  # nothing is meant to come here
            logger.exception("%s failed unexpectedly", doing)
            failure = explained(error, doing)
        if isinstance(failure, DeviceLostError):
            self._lose(failure.detail)
        else:
            self.scheduler.give_up(failure)

    def _admit(self, texts: Sequence[Generation]) -> None:
        refusal = self._refusal()
        if refusal is None:
            try:
                self.scheduler.admit(texts)
            except DeviceLostError:
                raise  # they fail with all others
            except Exception as error:
                for text in texts:
                    text.end_with(error)
                raise
        for text in texts if refusal is not None else ():
            if isinstance(refusal, DeviceLostError):
                text.fail(refusal)
            else:
                text.finish("error", refusal)

    def _lose(self, detail: str) -> None:
        self.lost = DeviceLostError(detail)
        self.scheduler.fail(self.lost)
        self.background.end(lambda: DeviceLostError(detail))
