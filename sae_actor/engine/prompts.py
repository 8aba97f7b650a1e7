"""Prompts to token ids: text, chat messages through the model's template, or ids that are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jinja2

from ..domain.refs import Reasoning, Turn
from ..errors import BadRequestError
from ..ports import Tokenized
from .model import LoadedModel
from .text import TextDecoder
from .turns import turns_of

CHARACTERS_A_TOKEN = 16
"""More than tokens have on average: the beginning that is tried first holds so many for each of the context."""

Prompt = str | Sequence[dict[str, str]] | Sequence[int]


def tokenized(prompt: Prompt, model: LoadedModel) -> Tokenized:
    """The prompt as the model sees it. Blocks: templates and long texts take time.

    Text gets the special tokens that the tokenizer adds; a chat gets what the template writes and nothing more, the
    answer opened. A text far longer than the context is refused by its beginning alone. `BadRequestError` for an
    empty prompt, one longer than the context, an id outside the vocabulary, a chat that the template refuses or a model
    without one.
    """
    turns: tuple[Turn, ...] | None = ()
    reasoning: Reasoning | None = None
    if isinstance(prompt, str):
        ids = _encoded(_encodable(prompt), model).input_ids if prompt else []
    elif all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        ids = list(prompt)
        wrong = next((each for each in ids if not 0 <= each < model.vocabulary), None)
        if wrong is not None:
            raise BadRequestError(f"token id {wrong} is outside the vocabulary of {model.vocabulary}", param="prompt")
    elif all(isinstance(item, Mapping) for item in prompt):
        ids, turns = _chat(prompt, model)
        reasoning = model.reasoning
    else:
        raise BadRequestError("a prompt is text, messages or token ids", param="prompt")
    if not ids:
        raise BadRequestError("the prompt is empty", param="prompt")
    _refuse_long(ids, model)
    special = tuple(token in model.special_ids for token in ids)
    pieces = _pieces(ids, model)
    return Tokenized(token_ids=tuple(ids), tokens=pieces, special=special, turns=turns, reasoning=reasoning)


def _encoded(text: str, model: LoadedModel, **how: Any) -> Any:
    """What the tokenizer makes of the text, token ids and, where asked for, offsets.

    A long text takes seconds and hundreds of megabytes. So a beginning of it is tried first, and twice as much of it as
    long as that would fit: one that comes to more than twice the context on its own is refused, for no end of a text
    takes back half of the tokens before it. `BadRequestError` then.
    """
    context, tried = model.facts.context_length, CHARACTERS_A_TOKEN * model.facts.context_length
    while tried < len(text):
        found = len(model.tokenizer(text[:tried], verbose=False, **how).input_ids)
        if found > 2 * context:
            message = f"the first {tried} characters of the prompt have {found} tokens, the model's context {context}"
            raise BadRequestError(message, param="prompt")
        tried *= 2
    return model.tokenizer(text, verbose=False, **how)


def _refuse_long(ids: Sequence[int], model: LoadedModel) -> None:
    context = model.facts.context_length
    if len(ids) > context:
        raise BadRequestError(f"the prompt has {len(ids)} tokens, the model's context {context}", param="prompt")


def _pieces(ids: Sequence[int], model: LoadedModel) -> tuple[str, ...]:
    """Text of each token; a character of several tokens is with the last of them. Joined they are the prompt."""
    decoder = TextDecoder(partial(model.decode, special=True), ())
    pieces = [decoder.push(token) for token in ids]
    pieces[-1] += decoder.flush()
    return tuple(pieces)


def _chat(messages: Sequence[Any], model: LoadedModel) -> tuple[list[int], tuple[Turn, ...] | None]:
    """Token ids, and where the messages are among them."""
    if not model.facts.has_chat_template:
        raise BadRequestError("the model has no chat template", param="messages")

    def render(some: Sequence[Any], *, opened: bool = False) -> str:
        text: str = model.tokenizer.apply_chat_template(list(some), tokenize=False, add_generation_prompt=opened)
        return text

    try:
        text = _encodable(render(messages, opened=True))
    except jinja2.TemplateError as error:
        said = error.message or "it does not say why"
        raise BadRequestError(f"the chat template refuses the messages: {said[:200]}", param="messages") from None
    if not model.tokenizer.is_fast:  # it cannot tell which characters a token holds
        return _encoded(text, model, add_special_tokens=False).input_ids, None
    encoded = _encoded(text, model, add_special_tokens=False, return_offsets_mapping=True)
    _refuse_long(encoded.input_ids, model)  # before the messages are looked for, one by one
    return encoded.input_ids, turns_of(messages, text, encoded.offset_mapping, render)


def _encodable(text: str) -> str:
    """Lone surrogates are no characters, and the tokenizer cannot take them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequestError("the prompt holds half of a surrogate pair", param="prompt") from None
    return text
