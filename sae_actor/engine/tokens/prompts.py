"""Prompts to token ids: text, chat messages through the model's template, or ids that are checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jinja2
from msgspec.structs import replace

from ...domain.chats import MessageSpan, Reasoning, Tokenization
from ...errors import BadRequestError
from ...ports import Tokenized
from .chat_spans import turns_of
from .chat_templates import FAILURES, ChatTemplate, Rendering
from .control_tokens import Encoded, Saying
from .detokenizer import IncrementalDetokenizer
from .info import check_ids
from .marks import said
from .tokenizer import Tokenizer

CHARACTERS_A_TOKEN = 16
"""More characters than tokens have on average: the part tried first has this many per token of the context."""

MOST_TOKENS = 2**31
"""Of a prompt that is not run: there are no more in any body."""

Prompt = str | Sequence[dict[str, str]] | Sequence[int]
Turns = tuple[MessageSpan, ...] | None
AS_IT_IS = Tokenization()


def tokenized(
    prompt: Prompt, tokenizer: Tokenizer, how: Tokenization = AS_IT_IS, *, any_length: bool = False
) -> Tokenized:
    """The prompt as the model sees it. Blocks: templates and long texts take time.

    Text gets the special tokens that the tokenizer adds, a chat what the template writes with the answer opened, unless
    `how` differs; neither gets a second BOS. Control tokens in a text are read as such unless `parse_special` is false;
    messages are text. A text far longer than the context is refused after its first part. `BadRequestError` for a
    prompt without any token, one longer than the context, an id outside the vocabulary, a chat that the template
    refuses, or a model without a template. any_length as `Engine.tokenize` has it.
    """
    context = tokenizer.context_length
    if any_length:
        tokenizer = dataclasses.replace(tokenizer, context_length=MOST_TOKENS)
    turns: Turns = ()
    reasoning: Reasoning | None = None
    if isinstance(prompt, str):
        ids = _begun(
            _text(_encodable(prompt), tokenizer, how), tokenizer, how, added=how.add_special_tokens is not False
        )
    elif all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        ids = [item for item in prompt if isinstance(item, int)]
        check_ids(ids, tokenizer)
        if how.prepend_bos is not None:
            raise BadRequestError("prepend_bos: token ids are used as given", param="prepend_bos")
    elif all(isinstance(item, Mapping) for item in prompt):
        ids, turns = _chat(prompt, tokenizer, how)
        reasoning = tokenizer.reasoning
        if how.continue_final_message and reasoning is not None and reasoning.format == "channels":
            reasoning = None  # it is content that is continued
    else:
        raise BadRequestError("a prompt must be text, messages or token ids", param="prompt")
    if not ids and not any_length:
        raise BadRequestError("the prompt is empty", param="prompt")
    _refuse_long(ids, tokenizer)
    if not 1 <= len(ids) <= context:
        return Tokenized(token_ids=tuple(ids), turns=None)
    special = tuple(token in tokenizer.special_ids for token in ids)
    pieces = _pieces(ids, tokenizer)
    return Tokenized(token_ids=tuple(ids), tokens=pieces, special=special, turns=turns, reasoning=reasoning)


def _text(text: str, tokenizer: Tokenizer, how: Tokenization) -> list[int]:
    read = _read(text, tokenizer)
    return (
        read.ids if how.parse_special else _as_text(text, read, tokenizer, [Saying(0, len(text))], "parse_special").ids
    )


def _begun(ids: list[int], tokenizer: Tokenizer, how: Tokenization, *, added: bool) -> list[int]:
    """With the special tokens that go around it; `added`: those of the tokenizer."""
    before, behind = tokenizer.around if added else ((), ())
    beginning = tokenizer.beginning
    if how.prepend_bos is True and beginning is None:
        raise BadRequestError("prepend_bos: the tokenizer has no token that begins a text", param="prepend_bos")
    if how.prepend_bos is not None or (ids and ids[0] == beginning):
        before = tuple(each for each in before if each != beginning)
    if how.prepend_bos and beginning is not None and ids[:1] != [beginning]:
        before = (beginning, *before)
    if not ids and not before:
        return []
    return [*before, *ids, *behind]


def _encoded(text: str, tokenizer: Tokenizer, **how: Any) -> Any:
    """The tokenizer's result for the text alone: token ids and, on request, offsets.

    A long text takes seconds and hundreds of megabytes. So its first part is tried first, doubled as long as it
    fits. If a part has more than twice the tokens of the context, the text is refused, since no rest of a text can
    halve the tokens before it. `BadRequestError` then.
    """
    context, tried = tokenizer.context_length, CHARACTERS_A_TOKEN * tokenizer.context_length
    while tried < len(text):
        found = len(tokenizer.raw(text[:tried], verbose=False, add_special_tokens=False, **how).input_ids)
        if found > 2 * context:
            message = f"the first {tried} characters of the prompt have {found} tokens, the model's context {context}"
            raise BadRequestError(message, param="prompt")
        tried *= 2
    return tokenizer.raw(text, verbose=False, add_special_tokens=False, **how)


def _as_text(text: str, read: Encoded, tokenizer: Tokenizer, said: Sequence[Saying], param: str) -> Encoded:
    """A text that was read, without control tokens in its content; `param` is the field that requires this."""
    if tokenizer.raw.is_fast:
        found = tokenizer.controls.among(text, read)
        forged = any(tokenizer.controls.forged(each, said) for each in found)
        return tokenizer.controls.as_text(text, read, said) if forged else read
    if any(tokenizer.controls.spelled(text[start:end]) for start, end, _ in said):
        message = "this model's tokenizer cannot read the text of a control token as text"
        raise BadRequestError(f"{param}: {message}", param=param)
    return read


def _refuse_long(ids: Sequence[int], tokenizer: Tokenizer) -> None:
    context = tokenizer.context_length
    if len(ids) > context:
        raise BadRequestError(f"the prompt has {len(ids)} tokens, the model's context {context}", param="prompt")


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Text of each token; a character of several tokens is with the last of them. Joined they are the prompt."""
    decoder = IncrementalDetokenizer(partial(tokenizer.decode, special=True), ())
    pieces = [decoder.push(token) for token in ids]
    pieces[-1] += decoder.flush()
    return tuple(pieces)


def _chat(messages: Sequence[Any], tokenizer: Tokenizer, how: Tokenization) -> tuple[list[int], Turns]:
    """Token ids, and where the messages are among them."""
    if tokenizer.template is None:
        raise BadRequestError("the model has no chat template", param="messages")
    template = _template(tokenizer.template, how)
    opened = how.add_generation_prompt and not how.continue_final_message
    try:
        text = _encodable(template.text(messages, opened=opened))
        read = _read(text, tokenizer)
        # Once it is known that it is not too long.
        found = template.continued(messages) if how.continue_final_message else None
        if how.continue_final_message and found is None:
            message = "the chat template does not show where the content of the last message ends"
            raise BadRequestError(f"continue_final_message: {message}", param="continue_final_message")
        rendering = found or template.rendered(messages, opened=opened)
        read = read if rendering.text == text else _read(rendering.text, tokenizer)  # a template may use the time
    except jinja2.TemplateError as error:
        why = error.message or "it does not say why"
        raise BadRequestError(f"the chat template refuses the messages: {why[:200]}", param="messages") from None
    except FAILURES as error:
        raise BadRequestError(f"the chat template fails on the messages: {error!s:.200}", param="messages") from None
    ids, spans = _spanned(messages, rendering, read, tokenizer)
    turns = None if not spans else turns_of(messages, rendering, spans, template)
    whole = _begun(ids, tokenizer, how, added=how.add_special_tokens is True)
    if how.prepend_bos is False and whole[:1] == [tokenizer.beginning]:
        whole = whole[1:]
    return whole, _moved(turns, ids, whole)


def _template(template: ChatTemplate, how: Tokenization) -> ChatTemplate:
    """With the request's variables."""
    variables = dict(how.chat_template_kwargs or {})
    if how.reasoning_effort is not None:
        if not template.knows("reasoning_effort"):
            message = "this value is not supported: the model's chat template does not read it"
            raise BadRequestError(f"reasoning_effort: {message}", param="reasoning_effort")
        variables.setdefault("reasoning_effort", how.reasoning_effort)
    return template.given(variables)


def _read(text: str, tokenizer: Tokenizer) -> Encoded:
    """Without offsets if the tokenizer does not report them. `BadRequestError` for a long text."""
    if not tokenizer.raw.is_fast:
        return Encoded(_encoded(text, tokenizer).input_ids, [])
    encoded = _encoded(text, tokenizer, return_offsets_mapping=True)
    _refuse_long(encoded.input_ids, tokenizer)
    return Encoded(encoded.input_ids, encoded.offset_mapping)


def _spanned(messages: Sequence[Any], rendering: Rendering, read: Encoded, tokenizer: Tokenizer) -> Encoded:
    """The tokens of a chat, which was `read` as if it held no control tokens but those of the template."""
    text, pieces = rendering
    if pieces is None:
        if any(map(tokenizer.controls.spelled, _said(messages))):
            message = "a message spells a control token, and the chat template does not keep the two apart"
            raise BadRequestError(message, param="messages")
        return read
    said = [Saying(start, end, messages[at].get("role") == "assistant") for at, start, end in pieces]
    return _as_text(text, read, tokenizer, said, "messages")


def _said(messages: Sequence[Any]) -> list[str]:
    return [text for message in messages for text in said(message).values()]


def _moved(turns: Turns, ids: Sequence[int], whole: Sequence[int]) -> Turns:
    """The spans, if tokens were put before the chat's, or its first was removed."""
    by = next((n for n in range(len(whole)) if whole[n : n + len(ids)] == ids), -1)
    if turns is None or by == 0:
        return turns

    def span(some: tuple[int, int]) -> tuple[int, int]:
        return max(0, some[0] + by), max(0, some[1] + by)

    return tuple(
        replace(
            turn,
            first=max(0, turn.first + by),
            stop=max(0, turn.stop + by),
            content=span(turn.content),
            parts=tuple(map(span, turn.parts)),
        )
        for turn in turns
    )


def _encodable(text: str) -> str:
    """Lone surrogates are not characters, and the tokenizer cannot read them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequestError("the prompt holds half of a surrogate pair", param="prompt") from None
    return text
