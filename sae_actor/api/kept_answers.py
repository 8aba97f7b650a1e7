"""Answers under an idempotency key: one while it is made, for everybody who asks, and the same for a while after."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from litestar import Response

from ..errors import IdempotencyKeyReusedError, SAEError
from .types import Answer

KEPT_SECONDS = 600.0
KEPT_ANSWERS = 1024
KEPT_BYTES = 256 * 1024 * 1024
"""Of all together: with activations an answer may have megabytes."""


@dataclass(slots=True)
class _KeptAnswer:
    """What was asked under a key, and its answer."""

    digest: str
    task: asyncio.Task[Answer]
    nbytes: int = 0
    until: float = 0.0


class KeptAnswers:
    """In memory and nowhere else: after a restart the log knows that the key was used."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._making: dict[str, _KeptAnswer] = {}
        self._made: OrderedDict[str, _KeptAnswer] = OrderedDict()
        """Oldest first."""
        self._bytes = 0

    async def answer(self, key: str, digest: str, make: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The answer under this key; `make` is called unless there is one, or it is being made, and goes on when its
        caller leaves. Raises `IdempotencyKeyReusedError` if the other one had another `digest`, and what `make` raises:
        an error of `make` is an answer too, unless it is a `NotAcceptedError`."""
        self._forget()
        kept = self._making.get(key) or self._made.get(key)
        if kept is None:
            kept = _KeptAnswer(digest, asyncio.ensure_future(make()))
            self._making[key] = kept
            kept.task.add_done_callback(lambda _: self._keep(key))
        if kept.digest != digest:
            raise IdempotencyKeyReusedError("the idempotency key was used for another request")
        try:
            answer = await asyncio.shield(kept.task)
        except NotAcceptedError as error:
            raise error.error from None
        # Each gets one of its own: middleware writes to it.
        return Response(
            content=answer.content,
            status_code=answer.status_code,
            media_type=answer.media_type,
            headers=dict(answer.headers),
        )

    def _keep(self, key: str) -> None:
        kept = self._making.pop(key)
        if kept.task.cancelled() or isinstance(kept.task.exception(), NotAcceptedError):
            return
        if kept.task.exception() is None:
            kept.nbytes = len(kept.task.result().content)
        kept.until = self._clock() + KEPT_SECONDS
        self._made[key] = kept
        self._bytes += kept.nbytes
        self._forget()

    def _forget(self) -> None:
        now = self._clock()
        while self._made:
            oldest = next(iter(self._made.values()))
            if oldest.until > now and len(self._made) <= KEPT_ANSWERS and self._bytes <= KEPT_BYTES:
                return
            self._bytes -= self._made.popitem(last=False)[1].nbytes


class NotAcceptedError(Exception):
    """A request that was refused before anything of it was on record: its key is free again."""

    def __init__(self, error: SAEError) -> None:
        super().__init__(error.detail)
        self.error = error
