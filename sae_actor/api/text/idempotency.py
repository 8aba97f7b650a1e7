"""Texts under an idempotency key: a repetition joins the one that is made, or gets its answer again.

The key is bound with the first `GenerationStarted`, whose `command_id` follows from it; from then on the text is made
to its end, whoever leaves. Its answer is kept in memory for a while, and made again from the log if that has the text.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from litestar import Request

from ...actor import command_id_of
from ...domain.events import Event, GenerationFinished, GenerationStarted
from ...domain.structs import filled
from ...errors import AnswerGoneError, BadRequestError, IdempotencyKeyReusedError, SAEError
from ...generations import Completed, RunningGeneration, ends
from ...ports import Finished, GenerationStream, Tokenized
from ..context import context, principal
from ..disconnects import heard
from ..kept_answers import NotAcceptedError
from ..names import shown_name
from ..problems import recorded_error
from ..requests import idempotency_key
from ..types import Answer, AnyRequest
from .replies import Choice, Kind, Reply
from .requests import RequestKey, TextBody, fingerprint
from .stream import made_answer

Made = tuple[Reply, Sequence[Completed]]


class KeyedRequest:
    """One unstreamed request under a key."""

    def __init__(self, request: AnyRequest, key: str, raw: bytes, body: TextBody, kind: Kind) -> None:
        """`raw`: the body as it was sent."""
        self.body = body
        self.kind: Kind = kind
        self.command_id = command_id_of(principal(request), key)
        self._canonical = msgspec.json.encode([request.scope["path"], msgspec.json.decode(raw)], order="sorted")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._canonical).hexdigest()

    def key(self, salt: str | None = None) -> RequestKey:
        salt = secrets.token_hex(16) if salt is None else salt
        return RequestKey(self.command_id, salt, hashlib.sha256(bytes.fromhex(salt) + self._canonical).hexdigest())


async def asked_under_key(request: AnyRequest, body: TextBody, kind: Kind) -> KeyedRequest | None:
    """None where there is no key. Raises `BadRequestError` for a stream: what a client has of it could not be told."""
    key = idempotency_key(request)
    if key is None:
        return None
    if body.stream:
        raise BadRequestError("a stream cannot be repeated under an Idempotency-Key", param="Idempotency-Key")
    return KeyedRequest(request, key, await request.body(), body, kind)


async def answered_once(
    request: AnyRequest,
    asked: KeyedRequest,
    opened: Callable[[AnyRequest, RequestKey], Awaitable[Reply]],
    shown: Callable[[Made], msgspec.Struct],
) -> Answer:
    """The answer to a request under a key: `shown` of what `opened` begins, or of what the log has of it."""
    unheard: AnyRequest = Request(request.scope, _nothing_more)

    async def once() -> Answer:
        try:
            found = await _recorded(unheard, asked)
            reply = await opened(unheard, asked.key()) if found is None else None
        except SAEError as error:
            # A refusal is not remembered; what the log says, it will say again.
            raise NotAcceptedError(error) from None
        if found is None and reply is not None:
            found = reply, await ends(reply.texts)
        assert found is not None
        return await made_answer(unheard, partial(shown, found), found[:1], whole=True)

    async with heard(request):
        return await context(request).kept.answer(asked.command_id, asked.digest, once)


async def _nothing_more() -> Any:
    """In place of what the client does: the text is made to its end."""
    await asyncio.get_running_loop().create_future()


# — from the log —


async def _recorded(request: AnyRequest, asked: KeyedRequest) -> Made | None:
    """What the log has of the texts of this request; None if they were not all begun.

    Raises `IdempotencyKeyReusedError`, the recorded error of a text, and `AnswerGoneError` for what is not recorded.
    """
    body, log = asked.body, context(request).log
    count = len(body.prompts()) * body.choices
    events = [event for event in await log.of_command(asked.command_id) if event.type != "CommandRejected"]
    begun = [event for event in events if event.type == "GenerationStarted"]
    if not events:
        return None
    for event in begun or events:
        _check(asked, event)
    if len(begun) < count:
        return None
    ends_of = {end.generation_id: end for event in events if isinstance(end := event.payload(), GenerationFinished)}
    last = begun[-count:]
    ours = {each.generation_id for event in last if isinstance(each := event.payload(), GenerationStarted)}
    # The first text that failed had the others end, and its error was the answer.
    for end in ends_of.values():
        if end.error is not None and end.generation_id in ours:
            raise recorded_error(end.error)
    choices: list[Choice] = []
    done: list[Completed] = []
    async with context(request).walks.taken():
        state = await context(request).past.state(log, last[0].position)
    for index, event in enumerate(last):
        started = event.payload()
        assert isinstance(started, GenerationStarted)
        completed = _completed(body, started, ends_of.get(started.generation_id))
        text = RunningGeneration(
            event, started, GenerationStream(), [state.weights(sae) for sae in started.intervention]
        )
        prompt = Tokenized(token_ids=completed.record.prompt_token_ids or ())
        choices.append(Choice(asked.kind, index, text, prompt, thoughts=body.thoughts))
        done.append(completed)
    if state.model is None or state.model.facts is None:
        raise AnswerGoneError("the model of the answer is unknown")
    facts, created = state.model.facts, created_at(last[0])
    model = shown_name(request, facts, choices[0].text.started)
    return Reply(asked.kind, model, fingerprint(facts), tuple(choices), created, body.choices), done


def _check(asked: KeyedRequest, event: Event) -> None:
    """Whether a recorded beginning is that of this request."""
    started = event.payload()
    if started is None:
        raise AnswerGoneError("the record of the answer was erased")
    salt = started.request_salt if isinstance(started, GenerationStarted) else None
    if salt is None or asked.key(salt).sha256 != getattr(started, "request_sha256", None):
        raise IdempotencyKeyReusedError("the idempotency key was used for another request")


def _completed(body: TextBody, started: GenerationStarted, record: GenerationFinished | None) -> Completed:
    """The end of a text as the log has it, if it has all that the answer shows."""
    whole = record is not None and record.finish_reason not in ("cancelled", "interrupted", "error")
    if record is None or not whole or record.text is None or record.prompt_token_ids is None or _lacks(body, started):
        raise AnswerGoneError(
            f"the answer {started.generation_id} is not kept any more; send another Idempotency-Key to make one",
            generation_id=started.generation_id,
        )
    assert record.receipt is not None
    finished = filled(Finished, record, reason=record.finish_reason, token_ids=record.output_token_ids or ())
    return Completed(finished, record)


def _lacks(body: TextBody, started: GenerationStarted) -> bool:
    """Whether the answer shows what is not on record: scores, activations, the prompt's text, reasoning by itself, and
    which of the edited positions were sinks."""
    edits_sinks = any("sink" not in edit.exclude for sae in started.intervention for edit in sae.steering)
    scores = body.scores is not None or (body.sae is not None and body.sae.logprobs_of is not None)
    others = scores or body.echoes or bool(started.watched) or started.reasoning is not None
    return others or edits_sinks


def created_at(event: Event) -> int:
    """Seconds since 1970, of an answer that began with this event."""
    return int(datetime.fromisoformat(event.time).timestamp())
