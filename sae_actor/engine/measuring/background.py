"""Work in pieces, done on the device thread while nothing is generated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from ...errors import SAEError

T = TypeVar("T")


class _Work(NamedTuple):
    pieces: Generator[None, None, Any]
    future: Future[Any]
    uses: int
    """attach_position of its SAE."""


class Background:
    """Belongs to the device thread. Each piece is one forward pass; between two of them the work holds tensors."""

    def __init__(self) -> None:
        self._waiting: deque[_Work] = deque()

    @property
    def idle(self) -> bool:
        return not self._waiting

    def add(self, pieces: Generator[None, None, T], future: Future[T], uses: int) -> None:
        self._waiting.append(_Work(pieces, future, uses))

    def step(self) -> None:
        """Do one piece of the first work. What it raises is raised, and the work is over."""
        work = self._waiting[0]
        if work.future.cancelled():
            self._over(work)
            return
        try:
            next(work.pieces)
        except StopIteration as done:
            self._over(work)
            if not work.future.cancelled():
                work.future.set_result(done.value)
        except BaseException:
            self._over(work)
            raise

    @property
    def first(self) -> Future[Any]:
        return self._waiting[0].future

    def end(self, error: Callable[[], SAEError], uses: int | None = None) -> None:
        """End all work, or that with one SAE: what it uses goes away."""
        for work in tuple(self._waiting):
            if uses is None or work.uses == uses:
                self._over(work)
                fail(work.future, error())

    def _over(self, work: _Work) -> None:
        self._waiting.remove(work)
        work.pieces.close()


def fail(future: Future[Any], error: SAEError) -> None:
    if not future.cancelled():
        future.set_exception(error)
