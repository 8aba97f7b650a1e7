"""A thread that runs one job after the other, in the order of the requests."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ..errors import SAEError
from .failures import explained

T = TypeVar("T")


class Worker:
    """A daemon thread with an inbox. Jobs may block; what they raise becomes an error of `errors`."""

    def __init__(self, name: str) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], T], doing: str) -> Future[T]:
        """Do `job` when its turn comes, unless the future is cancelled before."""
        future: Future[T] = Future()
        self._put(lambda: _settle(future, job, doing))
        return future

    def _put(self, job: Callable[[], None]) -> None:
        self._inbox.put(job)

    async def run(self, job: Callable[[], T], doing: str) -> T:
        """`call`, awaited. A cancel drops a job that has not begun; one that has runs to its end, unheard."""
        return await asyncio.wrap_future(self.call(job, doing))

    def stop(self, seconds: float) -> None:
        """End the thread after the waiting jobs; give up waiting for it after `seconds`."""
        self._inbox.put(None)
        self._thread.join(seconds)

    def _loop(self) -> None:
        while (job := self._inbox.get()) is not None:
            job()
            del job  # or what it made would be held until the next one


def _settle(future: Future[T], job: Callable[[], T], doing: str) -> None:
    if not future.set_running_or_notify_cancel():
        return
    failure: SAEError
    try:
        result = job()
    except Exception as error:  # the waiting side must hear of anything; it hears it in our words
        failure = explained(error, doing)
    else:
        future.set_result(result)
        return
    # Outside of the block above: the traceback and the tensors in its frames are gone.
    future.set_exception(failure)
