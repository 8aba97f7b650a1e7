"""Text under an intervention: admitted by a turn of the actor, made by the engine, closed on record.

A request runs in tasks of its own, one that makes the text and one that puts its end on record, so that a client
who goes away cancels the text but never the record of it: the last thing a reader gets comes after GenerationFinished
is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from ..domain import events as ev
from ..domain.events import Event, GenerationFinished, GenerationStarted
from ..domain.messages import AdmitGeneration
from ..domain.refs import FinishReason
from ..errors import (
    DeadlineExceededError,
    DeviceLostError,
    InternalError,
    MailboxFullError,
    SAEError,
    TooLargeError,
    from_code,
)
from ..ports import Engine, Finished, TextRequest, Token, Watch
from .actor import Actor
from .counts import TextCounts
from .monitoring import Monitors, watches
from .perform import problem

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""Past a text's deadline the engine ends it by itself, should it not have heard that it was given up."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a text, on record."""

    finished: Finished
    record: GenerationFinished


@dataclass(frozen=True, slots=True)
class Tell:
    """What is told with each token."""

    logprobs: int | None = None
    """As in `TextRequest`."""
    top_k_features: int = 0
    """So many activations of each SAE that the request watches."""
    prompt: Sequence[str] = ()
    """Text of the prompt's tokens, for what is monitored."""


class RunningText:
    """One admitted request. Iterate for its tokens and, last, a `Done`; an error is raised in its place."""

    def __init__(self, started: Event, payload: GenerationStarted, prompt: Sequence[str | None]) -> None:
        self.position = started.position
        self.principal = started.principal
        self.started = payload
        self.items: asyncio.Queue[Token | Done | SAEError] = asyncio.Queue()
        self.made: list[Token] = []
        self.written = [*prompt]
        """Text of each token, the prompt's first; None where nobody told."""
        self.making: asyncio.Task[Finished | SAEError] | None = None
        """The engine's part: what `abandon` cancels. The record of the end is not."""

    def abandon(self) -> None:
        """Nobody reads any more: stop the text and free its place. Harmless after the end."""
        if self.making is not None:
            self.making.cancel()

    async def __aiter__(self) -> AsyncGenerator[Token | Done, None]:
        try:
            while True:
                item = await self.items.get()
                if isinstance(item, SAEError):
                    raise item
                yield item
                if isinstance(item, Done):
                    return
        finally:
            self.abandon()

    async def result(self) -> Done:
        """Wait for the end."""
        async with contextlib.aclosing(self.__aiter__()) as items:
            async for item in items:
                if isinstance(item, Done):
                    return item
        raise InternalError("the text ended without a result")


class Texts:
    """Admits requests and keeps those that run."""

    def __init__(
        self,
        actor: Actor,
        engine: Engine,
        *,
        record_text: bool = False,
        deadline_seconds: float = 600.0,
        places: int | None = None,
    ) -> None:
        """deadline_seconds: a text that is not done so long after its admission is given up. places: for how many texts
        the engine has room; a further one is refused before anything of it is on record."""
        self.deadline_seconds = deadline_seconds
        self.places = places
        self._actor = actor
        self._engine = engine
        self._record_text = record_text
        self._monitors = Monitors(actor.broadcast)
        self.counts = TextCounts()
        self._running: dict[asyncio.Task[None], RunningText] = {}
        self._opening: set[asyncio.Task[RunningText]] = set()

    async def open(
        self,
        ask: Callable[[str], AdmitGeneration],
        token_ids: Sequence[int],
        *,
        principal: str,
        tell: Tell | None = None,
    ) -> RunningText:
        """Admit a request under a fresh generation id and start it. Raises what the rules refuse it with, and
        `MailboxFullError`."""
        if self.places is not None and len(self._running) + len(self._opening) >= self.places:
            raise MailboxFullError("too many texts are waiting", retry_after=1)
        opening = asyncio.create_task(self._open(ask, tuple(token_ids), principal, tell or Tell()))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # It may be on record already that the text began: its end must follow.
            opening.add_done_callback(_abandon)
            raise

    @property
    def waiting(self) -> int:
        """Texts that have no token yet."""
        return sum(not text.made for text in self._running.values())

    @property
    def running(self) -> int:
        """Texts that have some tokens, and no end on record."""
        return len(self._running) - self.waiting

    async def close(self) -> None:
        """Cancel what runs and wait until each end is on record."""
        while self._running or self._opening:
            for text in self._running.values():
                text.abandon()
            await asyncio.wait([*self._running, *self._opening])

    async def _open(
        self,
        ask: Callable[[str], AdmitGeneration],
        token_ids: tuple[int, ...],
        principal: str,
        tell: Tell,
    ) -> RunningText:
        event = await self._actor.admit(ask(f"gen-{uuid.uuid4()}"), principal=principal)
        payload = event.payload()
        assert isinstance(payload, GenerationStarted)
        self.counts.tokens.add("prompt", amount=len(token_ids))
        text = RunningText(event, payload, tell.prompt or (None,) * len(token_ids))
        asked_for = tuple(Watch(sae=sae, top_k=tell.top_k_features) for sae in payload.watched)
        request = TextRequest(
            generation_id=payload.generation_id,
            token_ids=token_ids,
            sampling=payload.sampling,
            intervention=payload.intervention,
            deadline_seconds=self.deadline_seconds + GRACE_SECONDS,
            logprobs=tell.logprobs,
            watched=(*asked_for, *watches(self._actor.state)),
            stop_when=payload.stop_when,
            turns=payload.turns,
            deterministic=payload.deterministic,
        )
        text.making = asyncio.create_task(self._generate(text, request), name=payload.generation_id)
        task = asyncio.create_task(self._run(text, text.making, token_ids), name=f"{payload.generation_id} record")
        self._running[task] = text
        task.add_done_callback(self._running.pop)
        return text

    async def _run(
        self, text: RunningText, making: asyncio.Task[Finished | SAEError], token_ids: tuple[int, ...]
    ) -> None:
        """Put the end of a text on record, then give it out."""
        await asyncio.wait([making])
        ended = _cut_off(token_ids, text.made, "cancelled") if making.cancelled() else making.result()
        record = _record(text, token_ids, ended)
        self.counts.texts.add(record.finish_reason)
        if isinstance(ended, Finished) and ended.faulted is not None:
            self._report_fault(text, ended)
        try:
            record = await self._tell(text, record, token_ids, ended)
        except SAEError as error:
            # What is not on record is not given out as if it were.
            ended = error
        if isinstance(ended, SAEError):
            text.items.put_nowait(ended)
        elif ended.reason == "error":
            text.items.put_nowait(_failure(ended))
        else:
            text.items.put_nowait(Done(ended, record))

    async def _tell(
        self, text: RunningText, record: GenerationFinished, token_ids: tuple[int, ...], ended: Finished | SAEError
    ) -> GenerationFinished:
        """Put the record into the log; the text with it where that is wanted and not too long for an event."""
        if self._record_text:
            with contextlib.suppress(TooLargeError):
                whole = _with_text(record, token_ids, ended)
                await self._actor.tell(whole, principal=text.principal)
                return whole
        await self._actor.tell(record, principal=text.principal)
        return record

    async def _generate(self, text: RunningText, request: TextRequest) -> Finished | SAEError:
        """Run the engine; every error becomes a value, so that the end is always recorded."""
        try:
            async with (
                asyncio.timeout(self.deadline_seconds),
                contextlib.aclosing(self._engine.generate(request)) as stream,
            ):
                async for item in stream:
                    if isinstance(item, Finished):
                        return item
                    self._take(text, item)
        except TimeoutError:
            # Here and not in the engine alone, whose thread may be what hangs.
            late = DeadlineExceededError(f"the text was not done within {self.deadline_seconds:g} seconds")
            return _cut_off(request.token_ids, text.made, "error", late)
        except DeviceLostError as error:
            self._actor.tell(ev.GpuLost(detail=error.detail))
            return error
        except SAEError as error:
            return error
        except Exception:
            logger.exception("%s failed unexpectedly", text.started.generation_id)
        return InternalError("the text could not be made; the service's log has the cause")

    def _take(self, text: RunningText, item: Token) -> None:
        """Give a token out; what is only monitored is announced in its stead, and is no part of the answer."""
        asked_for = len(text.started.watched)
        own, monitored = item.activations[:asked_for], item.activations[asked_for:]
        if monitored:
            item = replace(item, activations=own)
            self._monitors.tell(text.started.generation_id, monitored, text.written, self._actor.state)
        text.written.append(item.text)
        text.made.append(item)
        self.counts.tokens.add("generated")
        text.items.put_nowait(item)

    def _report_fault(self, text: RunningText, ended: Finished) -> None:
        sae = next((s for s in text.started.saes if s.attach_position == ended.faulted), None)
        if sae is not None:
            fault = ev.Problem(code=ended.error_code or "internal", detail=ended.error_detail or "the SAE failed")
            self._actor.tell(ev.HookFaulted(sae_id=sae.sae_id, request_position=sae.attach_position, error=fault))


def _abandon(opening: asyncio.Task[RunningText]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abandon()


def _cut_off(
    token_ids: tuple[int, ...], made: list[Token], reason: FinishReason, error: SAEError | None = None
) -> Finished:
    """The end of a text that the engine was told to drop: its reader went away, or it took too long. The engine gives
    no receipt for it."""
    nothing = ev.Receipt(
        tokens_prompt=len(token_ids),
        tokens_generated=len(made),
        tokens_edited=0,
        tokens_excluded=0,
        mean_relative_norm=0.0,
    )
    return Finished(
        reason=reason,
        receipt=nothing,
        token_ids=tuple(token.id for token in made),
        text="".join(token.text for token in made),
        error_code=None if error is None else error.code,
        error_detail=None if error is None else error.detail,
    )


def _record(text: RunningText, token_ids: tuple[int, ...], ended: Finished | SAEError) -> GenerationFinished:
    salt = secrets.token_hex(16)
    record = GenerationFinished(
        generation_id=text.started.generation_id,
        started_position=text.position,
        finish_reason="error",
        intervention_sha256=text.started.intervention_sha256,
        salt=salt,
        prompt_sha256=token_digest(salt, token_ids),
    )
    if isinstance(ended, SAEError):
        return replace(record, error=problem(ended))
    cut_off = ended.reason == "cancelled" or ended.error_code == DeadlineExceededError.code
    return replace(
        record,
        finish_reason=ended.reason,
        receipt=None if cut_off else ended.receipt,
        edited=ended.edited,
        excluded=ended.excluded,
        batch=ended.batch,
        output_sha256=token_digest(salt, ended.token_ids),
        error=problem(_failure(ended)) if ended.reason == "error" else None,
    )


def _with_text(
    record: GenerationFinished, token_ids: tuple[int, ...], ended: Finished | SAEError
) -> GenerationFinished:
    """What `[audit] record_text` adds."""
    record = replace(record, prompt_token_ids=token_ids)
    if isinstance(ended, SAEError):
        return record
    return replace(record, output_token_ids=ended.token_ids, text=ended.text)


def _failure(ended: Finished) -> SAEError:
    return from_code(ended.error_code or "internal", ended.error_detail or "the text could not be made")


def token_digest(salt: str, token_ids: Sequence[int]) -> str:
    """sha256 of salt ‖ token ids (little-endian u32 each), as GenerationFinished records it."""
    return hashlib.sha256(bytes.fromhex(salt) + b"".join(each.to_bytes(4, "little") for each in token_ids)).hexdigest()
