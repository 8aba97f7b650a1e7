"""The end of a generation, be it the engine's, the reader's or the deadline's; and how it goes on record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ..actor.actor import Actor
from ..domain.events import GenerationFinished
from ..errors import DeadlineExceededError, SAEError, TooLargeError
from ..ports import Finished
from .records import LEFT_OUT, cut_off, with_text, without
from .running import RunningGeneration


async def end_of(
    generation: RunningGeneration, tokens_prompt: int, *, deadline: Callable[[], float], stop_wait_seconds: float
) -> Finished | SAEError:
    """Wait for the end, the reader's disconnect or the deadline. Then stop it and wait briefly: the engine's
    thread may hang. deadline: seconds until its first step, and again from there."""
    stream = generation.stream
    ends: list[asyncio.Future[Any]] = [stream.finished, generation.left]
    first = [*ends, stream.begun]
    # Texts to score wait for one another, as many as there are; a run's for all others, at any time.
    limit = deadline() if generation.holds_place else None
    await asyncio.wait(first, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    if begun := stream.begun.done():
        limit = None if generation.background else deadline()
        await asyncio.wait(ends, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    late = not (stream.finished.done() or generation.left.done())
    if not stream.finished.done():
        stream.stop()
        await asyncio.wait([stream.finished], timeout=stop_wait_seconds)
        await stream.aclose()
    ended = stream.result or cut_off(tokens_prompt, stream.tokens)
    if not late or isinstance(ended, SAEError):
        return ended
    what = "finish" if begun else "begin"
    error = DeadlineExceededError(f"the generation did not {what} within {deadline():g} seconds")
    return replace(ended, reason="error", error_code=error.code, error_detail=error.detail)


async def put_on_record(
    actor: Actor,
    generation: RunningGeneration,
    record: GenerationFinished,
    token_ids: tuple[int, ...],
    ended: Finished | SAEError,
    *,
    with_texts: bool,
) -> GenerationFinished:
    """Write the record to the log; with the text if that is wanted and small enough for an event."""
    if with_texts:
        record = whole = with_text(record, token_ids, ended)
        for names in LEFT_OUT:
            try:
                await actor.report(record, principal=generation.principal)
            except TooLargeError as error:
                record = without(whole, names, error)
            else:
                return record
    await actor.report(record, principal=generation.principal)
    return record
