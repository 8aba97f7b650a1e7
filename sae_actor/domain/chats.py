"""Chats: how a prompt becomes tokens, where its messages are among them, and the reasoning in answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

_WORD = re.compile(r"[A-Za-z0-9_.-]{0,64}")


class Tokenization(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request wants its prompt tokenized. The defaults follow the tokenizer, or the chat template."""

    add_special_tokens: bool | None = None
    """Add the tokens that the tokenizer puts around a text; None: for a text, not for a chat."""
    prepend_bos: bool | None = None
    """Begin with the BOS token, or do not; None: as the tokenizer or the template does."""
    parse_special: bool = True
    """Control tokens spelled in a text become those tokens."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables for the chat template, besides the messages."""
    reasoning_effort: str | None = None
    """A template variable too; the template must know it."""
    add_generation_prompt: bool = True
    """End a chat with the beginning of an answer; False: with its last message."""
    continue_final_message: bool = False
    """End a chat with the content of its last message, which the answer continues."""
    left_out: tuple[str, ...] = ()
    """Names of template variables whose values are not on record."""

    @property
    def recorded(self) -> Tokenization:
        """The part that goes on record: template variables that are switches, numbers or words. Longer texts may be as
        private as the prompt: only their names are recorded."""
        given = self.chat_template_kwargs or {}
        recorded = {name: value for name, value in given.items() if _is_setting(value)}
        left_out = tuple(name for name in given if name not in recorded)
        return replace(self, chat_template_kwargs=recorded or None, left_out=left_out)


def _is_setting(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and bool(_WORD.fullmatch(value)))
    )


class MessageSpan(Struct, frozen=True, kw_only=True):
    """The tokens [first, stop) of one message of a chat, with the template's text around it. A message nested in it has
    a span of its own."""

    role: str
    first: int
    stop: int
    content: tuple[int, int]
    """[from, to): the tokens of the message's own text."""
    parts: tuple[tuple[int, int], ...] = ()
    """The parts of `content` if the template writes something between them; empty if it is in one piece."""

    @property
    def said(self) -> tuple[tuple[int, int], ...]:
        """The tokens of the message's own text, part by part."""
        return self.parts or (self.content,)

    def within(self, other: MessageSpan) -> bool:
        """Whether it is part of the other message, such as a system message in the user's."""
        return self != other and other.first <= self.first and self.stop <= other.stop


def positions_of(role: str, turns: Sequence[MessageSpan]) -> set[int]:
    """The tokens of a role's messages. A token belongs to the innermost message only."""
    found: set[int] = set()
    for turn in turns:
        if turn.role == role:
            inner = (range(each.first, each.stop) for each in turns if each.role != role and each.within(turn))
            found |= set(range(turn.first, turn.stop)).difference(*inner)
    return found


class Reasoning(Struct, frozen=True, kw_only=True):
    """How the answers of a model's chats separate reasoning from content."""

    format: Literal["channels", "block"]
    """`channels`: each message names its channel, as in gpt-oss; `block`: reasoning first, between two marks."""
    begin: str = ""
    end: str = ""
    """The two marks of a block."""
