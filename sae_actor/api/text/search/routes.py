"""`/api/generations/search`: which answers were given to a prompt."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any

from msgspec import Meta, Struct

from ....domain.chats import Tokenization
from ....domain.events import Event, GenerationFinished, GenerationStarted, payload_of
from ....domain.refs import FinishReason
from ....domain.rules.admission import model_to_ask
from ....domain.views.fields import Count, Position
from ....errors import BadRequestError
from ...answers import answer, state_of
from ...context import context, device
from ...disconnects import heard
from ...limits import tokens_of
from ...operations import operation
from ...requests import MAX_POSITION, body_of
from ...types import Answer, AnyRequest
from ..fields import MESSAGES
from ..messages import ChatMessage, TemplateVariables, check_variables
from ..tokens import TokenIds
from .scan import NEWEST, Scan

MOST_FOUND = 1000


class SearchBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`, tokenized as the routes do it that make texts."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)] | None = None
    token_ids: TokenIds | None = None
    tag: Annotated[str, Meta(max_length=128)] | None = None
    """Only answers with this tag."""
    after: Annotated[int, Meta(ge=0, le=MAX_POSITION)] = 0
    """Only answers that began after this position."""
    add_special_tokens: bool | None = None
    prepend_bos: bool | None = None
    parse_special: bool = True
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """These as the request had them that is looked for."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        MESSAGES.settle(value)

    def asked(self) -> str | list[int] | list[dict[str, str]]:
        """The one prompt."""
        messages = None if self.messages is None else [message.plain() for message in self.messages]
        given = [each for each in (self.prompt, messages, self.token_ids) if each is not None]
        if len(given) != 1:
            raise BadRequestError("give exactly one of prompt, messages, token_ids", param="prompt")
        return given[0]

    @property
    def tokenization(self) -> Tokenization:
        check_variables(self.chat_template_kwargs or {})
        return Tokenization(
            add_special_tokens=self.add_special_tokens,
            prepend_bos=self.prepend_bos,
            parse_special=self.parse_special,
            reasoning_effort=self.reasoning_effort,
            chat_template_kwargs=self.chat_template_kwargs or None,
            add_generation_prompt=self.add_generation_prompt is not False and not self.continue_final_message,
            continue_final_message=bool(self.continue_final_message),
        )


class FoundGeneration(Struct, frozen=True, kw_only=True):
    """An answer to the prompt; `GET /api/generations/{generation_id}` explains it."""

    generation_id: str
    position: Position
    """Of its beginning."""
    finished_position: Position
    time: str
    """Of its end."""
    principal: str
    tag: str | None
    """null too where its beginning was erased."""
    finish_reason: FinishReason
    intervention_sha256: str
    prompt_sha256: str
    salt: str
    """sha256 of salt ‖ token ids (little-endian u32 each) is `prompt_sha256`."""


class FoundGenerations(Struct, frozen=True, kw_only=True):
    generations: tuple[FoundGeneration, ...]
    """In the order of their ends; of more than 1000 the newest."""
    tokens: Count
    """Of the prompt."""
    searched: Count
    """Answers that were looked at."""
    complete: bool
    """All answers after `after` were looked at, and all found are listed."""


@operation("POST", "/api/generations/search",
           f"The answers to a prompt among the newest {NEWEST}, found by the salted digest of its tokens: the log "
           "holds no more of a prompt unless it records texts. Those under way and erased ones are not found",
           body=SearchBody, returns=FoundGenerations, reads=True,
           errors=("model_not_loaded", "not_ready", "mailbox_full", "read_only"),
           examples={"a text": {"prompt": "I love this book"},
                     "a chat": {"messages": [{"role": "user", "content": "Hi"}], "tag": "mine"},
                     "tokens": {"token_ids": [40, 2462, 451], "after": 28}}, tag="log")  # fmt: skip
async def search_generations(request: AnyRequest) -> Answer:
    body: SearchBody = await body_of(request, SearchBody)
    token_ids = await _tokens(request, body)
    log, walks = context(request).log, context(request).walks
    scan = Scan(context(request).finder, token_ids, body.after)
    found: list[FoundGeneration] = []
    more = False
    async with heard(request), walks.taken(), aclosing(scan.found()) as ends:
        async for event, finished in ends:
            (began,) = await log.read(finished.started_position - 1, 1)
            view = _shown(began, event, finished)
            if body.tag in (None, view.tag):
                if len(found) == MOST_FOUND:
                    more = True
                    break
                found.append(view)
    complete = not more and scan.down_to <= body.after
    return answer(
        request,
        FoundGenerations(
            generations=tuple(reversed(found)), tokens=len(token_ids), searched=scan.searched, complete=complete
        ),
    )


async def _tokens(request: AnyRequest, body: SearchBody) -> list[int]:
    asked = body.asked()
    if body.token_ids is not None:
        return body.token_ids  # of whichever model: none is needed
    model_to_ask(state_of(request))
    prompt = await tokens_of(request, device(request), asked, body.tokenization, any_length=True)
    return list(prompt.token_ids)


def _shown(began: Event, event: Event, finished: GenerationFinished) -> FoundGeneration:
    started = payload_of(began)
    return FoundGeneration(
        generation_id=finished.generation_id,
        position=finished.started_position,
        finished_position=event.position,
        time=event.time,
        principal=began.principal,
        tag=started.tag if isinstance(started, GenerationStarted) else None,
        finish_reason=finished.finish_reason,
        intervention_sha256=finished.intervention_sha256,
        prompt_sha256=finished.prompt_sha256,
        salt=finished.salt,
    )
