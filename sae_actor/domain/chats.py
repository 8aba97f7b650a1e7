"""Chats: how a prompt becomes tokens, where its messages are among them, and the reasoning in answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

_WORD = re.compile(r"[A-Za-z0-9_.-]{0,64}")


class Tokenization(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request wants its prompt tokenized; the default is the tokenizer's or the chat template's way."""

    add_special_tokens: bool | None = None
    """Those that the tokenizer puts around a text; None: around a text, not around a chat."""
    prepend_bos: bool | None = None
    """Begin with the token that begins a text, or do not; None: as the tokenizer, or the template, does."""
    parse_special: bool = True
    """A text that spells a control token means that token."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, besides the messages."""
    reasoning_effort: str | None = None
    """A variable too, which the template must know."""
    add_generation_prompt: bool = True
    """A chat ends with the beginning of an answer; False: with its last message."""
    continue_final_message: bool = False
    """A chat ends with the content of its last message, which the answer continues."""
    left_out: tuple[str, ...] = ()
    """Names of template variables whose values are not on record."""

    @property
    def recorded(self) -> Tokenization:
        """As it goes on record: template variables that are switches, numbers or words. Longer texts may be as private
        as the prompt; of those only the names."""
        given = self.chat_template_kwargs or {}
        kept = {name: value for name, value in given.items() if _is_setting(value)}
        left_out = tuple(name for name in given if name not in kept)
        return replace(self, chat_template_kwargs=kept or None, left_out=left_out)


def _is_setting(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and bool(_WORD.fullmatch(value)))
    )


class MessageSpan(Struct, frozen=True, kw_only=True):
    """One message of a chat among the prompt's tokens, [first, stop), with what the template writes around it. A
    message nested in it has a span of its own."""

    role: str
    first: int
    stop: int
    content: tuple[int, int]
    """[from, to): the tokens that hold what is said."""
    parts: tuple[tuple[int, int], ...] = ()
    """The pieces of `content`, where the template writes something between them; none where it is one."""

    @property
    def said(self) -> tuple[tuple[int, int], ...]:
        """What is said, piece by piece."""
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
    """`channels`: messages that each name theirs, as gpt-oss has them; `block`: thoughts first, between two marks."""
    begin: str = ""
    end: str = ""
    """The marks of a block."""
