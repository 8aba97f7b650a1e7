"""Chats: how a prompt becomes tokens, where its messages are among them, and the reasoning in answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct


class Tokenization(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request wants its prompt tokenized; the default is the tokenizer's or the chat template's way."""

    add_special_tokens: bool | None = None
    """Those that the tokenizer puts around a text; None: around a text, not around a chat."""
    prepend_bos: bool | None = None
    """Begin with the token that begins a text, or do not; None: as the tokenizer, or the template, does."""
    parse_special: bool = True
    """A text that spells a control token means that token."""


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
