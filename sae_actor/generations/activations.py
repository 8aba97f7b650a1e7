"""Activations of a prompt, read without generating; not recorded, since the answer is numbers only."""

from __future__ import annotations

import asyncio
import contextlib

from ..domain.chats import MessageSpan
from ..domain.events import Sampling
from ..domain.refs import SINK_WINDOW, Intervention
from ..errors import DeadlineExceededError, InternalError, SAENotAttachedError, from_code
from ..limits import NO_DEADLINE
from ..ports import Activations, Engine, Finished, GenerationRequest, GenerationStream, Watch
from .generations import ENGINE_DEADLINE_MARGIN

ONE_TOKEN = Sampling(temperature=0.0, top_p=1.0, max_tokens=1, seed=0)
"""The prompt is run once; the token that would follow is dropped."""


async def read_activations(
    engine: Engine,
    token_ids: tuple[int, ...],
    intervention: Intervention,
    turns: tuple[MessageSpan, ...],
    watch: Watch,
    *,
    deadline_seconds: float,
    share: str = "",
    alone: bool = False,
    background: bool = False,
) -> Activations:
    """As `read_prompt`, of one watch."""
    (found,) = await read_prompt(
        engine,
        token_ids,
        intervention,
        turns,
        (watch,),
        deadline_seconds=deadline_seconds,
        share=share,
        alone=alone,
        background=background,
    )
    return found


async def read_prompt(
    engine: Engine,
    token_ids: tuple[int, ...],
    intervention: Intervention,
    turns: tuple[MessageSpan, ...],
    watched: tuple[Watch, ...],
    *,
    deadline_seconds: float,
    share: str = "",
    alone: bool = False,
    background: bool = False,
) -> tuple[Activations, ...]:
    """What is watched, at every position of the prompt, under the intervention. share: who asks. background: a run,
    which waits for all others, without a deadline.

    Queues like a generation, and raises the same errors of the engine; `SAENotAttachedError` if an SAE was detached
    meanwhile, `DeadlineExceededError`.
    """
    # Nobody asks a lens for sinks, so its prompt need not begin in one piece; an edit may.
    sinks = bool(intervention) or any(watch.lens is None for watch in watched)
    request = GenerationRequest(
        generation_id="activations",
        token_ids=token_ids,
        sampling=ONE_TOKEN,
        intervention=intervention,
        share=share,
        deadline_seconds=NO_DEADLINE if background else deadline_seconds + ENGINE_DEADLINE_MARGIN,
        background=background,
        watched=watched,
        turns=turns,
        sink_window=SINK_WINDOW if sinks else None,
        alone=alone,
    )
    if background:
        while (read := await _read(engine.generate(request), len(watched))) is None:
            continue  # it gave way to another text
        return read
    items, loop = engine.generate(request), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(deadline_seconds) as limit:

            def begun(_: asyncio.Future[None]) -> None:
                if not limit.expired():
                    limit.reschedule(loop.time() + deadline_seconds)

            items.begun.add_done_callback(begun)
            try:
                found = await _read(items, len(watched))
            finally:
                items.begun.remove_done_callback(begun)
    except TimeoutError:
        raise DeadlineExceededError(f"the prompt was not read within {deadline_seconds:g} seconds") from None
    if found is None:
        raise InternalError("the reading was given up")
    return found


async def _read(stream: GenerationStream, watched: int) -> tuple[Activations, ...] | None:
    """None: it was cancelled before that."""
    found: tuple[Activations, ...] = ()
    async with contextlib.aclosing(stream) as items:
        async for item in items:
            if not isinstance(item, Finished):
                found = item.activations
            elif item.reason == "intervention_removed":
                raise SAENotAttachedError("an SAE was detached while the prompt waited")
            elif item.reason == "error":
                raise from_code(item.error_code or "internal", item.error_detail or "the prompt could not be run")
            elif item.reason == "cancelled" and not found:
                return None
    if len(found) != watched:
        raise InternalError("the prompt was run without its activations")
    return found
