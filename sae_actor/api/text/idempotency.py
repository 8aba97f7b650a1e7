"""Texts under an idempotency key: a repetition joins the one that is made, or gets its answer again.

The key is bound with the first `GenerationStarted`, whose `command_id` follows from it; from then on the text is made
to its end, whoever leaves. Its answer is kept in memory for a while, and made again from the log if that has the text.
The log never has a whole score.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from litestar import Request

from ...actor import command_id_of
from ...domain.events import Event, GenerationFinished, GenerationStarted
from ...domain.structs import filled
from ...errors import AnswerGoneError, BadRequestError, IdempotencyKeyReusedError, SAEError
from ...generations import Completed, RunningGeneration
from ...ports import Finished, GenerationStream, Tokenized
from ..context import context, principal
from ..disconnects import heard
from ..kept_answers import NotAcceptedError
from ..names import shown_name
from ..problems import recorded_error
from ..requests import idempotency_key
from ..types import Answer, AnyRequest
from .options import SaeExtension
from .replies import Choice, Kind, Reply
from .requests import RequestKey, TextBody, fingerprint

Made = tuple[Reply, Sequence[Completed]]
Finish = Callable[[], Awaitable[Answer]]


class KeyedRequest:
    """One unstreamed request under a key."""

    def __init__(self, request: AnyRequest, key: str, raw: bytes) -> None:
        """`raw`: the body as it was sent."""
        self.command_id = command_id_of(principal(request), key)
        self._canonical = msgspec.json.encode([request.scope["path"], msgspec.json.decode(raw)], order="sorted")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._canonical).hexdigest()

    def key(self, salt: str | None = None) -> RequestKey:
        salt = secrets.token_hex(16) if salt is None else salt
        return RequestKey(self.command_id, salt, hashlib.sha256(bytes.fromhex(salt) + self._canonical).hexdigest())


async def asked_under_key(request: AnyRequest, *, streams: bool) -> KeyedRequest | None:
    """None where there is no key. Raises `BadRequestError` for a stream: what a client has of it could not be told."""
    key = idempotency_key(request)
    if key is None:
        return None
    if streams:
        raise BadRequestError("a stream cannot be repeated under an Idempotency-Key", param="Idempotency-Key")
    return KeyedRequest(request, key, await request.body())


async def answered_once(
    request: AnyRequest, asked: KeyedRequest, begin: Callable[[AnyRequest], Awaitable[Finish]]
) -> Answer:
    """The answer to a request under a key. `begin` looks into the log, begins what that does not have, and returns what
    waits for the answer; it gets a request whose client never leaves."""
    unheard: AnyRequest = Request(request.scope, _nothing_more)

    async def once() -> Answer:
        try:
            finish = await begin(unheard)
        except SAEError as error:
            # A refusal is not remembered; what the log says, it will say again.
            raise NotAcceptedError(error) from None
        return await finish()

    async with heard(request):
        return await context(request).kept.answer(asked.command_id, asked.digest, once)


async def _nothing_more() -> Any:
    """In place of what the client does: the text is made to its end."""
    await asyncio.get_running_loop().create_future()


# — from the log —


async def recorded(
    request: AnyRequest, asked: KeyedRequest, bodies: Sequence[TextBody], kind: Kind
) -> list[Made] | None:
    """What the log has of the texts of this request, each body's in turn; None if they were not all begun.

    Raises `IdempotencyKeyReusedError`, the recorded error of a text, and `AnswerGoneError` for what is not recorded.
    """
    counts = [len(body.prompts()) * body.choices for body in bodies]
    bare = [body.sae is not None and body.sae.baseline for body in bodies]
    begun = await _begun(request, asked, [each for each, count in zip(bare, counts, strict=True) for _ in range(count)])
    if begun is None:
        return None
    last, ends_of = begun
    async with context(request).walks.taken():
        state = await context(request).past.state(context(request).finder, last[0].position)
    if state.model is None or state.model.facts is None:
        raise AnswerGoneError("the model of the answer is unknown")
    facts, found = state.model.facts, list[Made]()
    for body, count in zip(bodies, counts, strict=True):
        own, last = last[:count], last[count:]
        choices: list[Choice] = []
        done: list[Completed] = []
        for index, event in enumerate(own):
            started = event.payload()
            assert isinstance(started, GenerationStarted)
            completed = _completed(body, started, ends_of.get(started.generation_id))
            text = RunningGeneration(
                event, started, GenerationStream(), [state.weights(sae) for sae in started.intervention]
            )
            prompt = Tokenized(token_ids=completed.record.prompt_token_ids or ())
            choices.append(Choice(kind, index, text, prompt, thoughts=body.thoughts))
            done.append(completed)
        model = shown_name(request, facts, choices[0].text.started)
        reply = Reply(kind, model, fingerprint(facts), tuple(choices), created_at(own[0]), body.choices)
        found.append((reply, done))
    return found


async def check_unmade(request: AnyRequest, asked: KeyedRequest, bare: Sequence[bool]) -> None:
    """For answers that are never whole in the log. Raises as `recorded` if all texts were begun; `bare`: which of them
    are baselines."""
    begun = await _begun(request, asked, bare)
    if begun is not None:
        started = begun[0][0].payload()
        assert isinstance(started, GenerationStarted)
        raise _gone(started)


async def _begun(
    request: AnyRequest, asked: KeyedRequest, bare: Sequence[bool]
) -> tuple[list[Event], dict[str, GenerationFinished]] | None:
    """The recorded beginnings of the texts of this request, in order, and the ends by their ids; None if they were not
    all begun, each a baseline or not as `bare` says."""
    log = context(request).log
    events = [event for event in await log.of_command(asked.command_id) if event.type != "CommandRejected"]
    begun = [event for event in events if event.type == "GenerationStarted"]
    if not events:
        return None
    for event in begun or events:
        _check(asked, event)
    last = begun[-len(bare) :]
    starts = [each for event in last if isinstance(each := event.payload(), GenerationStarted)]
    if [each.baseline for each in starts] != [*bare]:
        return None
    ends_of = {end.generation_id: end for event in events if isinstance(end := event.payload(), GenerationFinished)}
    ours = {each.generation_id for each in starts}
    # The first text that failed had the others end, and its error was the answer.
    for end in ends_of.values():
        if end.error is not None and end.generation_id in ours:
            raise recorded_error(end.error)
    return last, ends_of


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
        raise _gone(started)
    assert record.receipt is not None
    finished = filled(Finished, record, reason=record.finish_reason, token_ids=record.output_token_ids or ())
    return Completed(finished, record)


def _gone(started: GenerationStarted) -> AnswerGoneError:
    return AnswerGoneError(
        f"the answer {started.generation_id} is not kept any more; send another Idempotency-Key to make one",
        generation_id=started.generation_id,
    )


def _lacks(body: TextBody, started: GenerationStarted) -> bool:
    """Whether the answer shows what is not on record: scores, activations, details, the prompt's text, reasoning by
    itself, and which of the edited positions were sinks."""
    edits_sinks = any("sink" not in edit.exclude for sae in started.intervention for edit in sae.steering)
    own = body.sae or SaeExtension()
    scores = body.scores is not None or own.logprobs_of is not None
    others = scores or own.details or body.echoes or bool(started.watched) or started.reasoning is not None
    return others or edits_sinks


def created_at(event: Event) -> int:
    """Seconds since 1970, of an answer that began with this event."""
    return int(datetime.fromisoformat(event.time).timestamp())
