"""The tokenizer of a model, and what is known of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...domain.chats import Reasoning
from .chat_templates import ChatTemplate
from .control_tokens import Controls
from .token_text import TokenTexts


@dataclass
class Tokenizer:
    """Of one model, next to the one that transformers has."""

    raw: Any
    """That of transformers."""
    end_ids: frozenset[int]
    """Ids that end a text, from the generation config alone."""
    vocabulary: int
    """Rows of the embedding: every id below can be fed."""
    special_ids: frozenset[int]
    """Tokens that are not text: begin, end, messages."""
    pieces: TokenTexts
    """Text and bytes of single tokens. For the device thread."""
    controls: Controls
    template: ChatTemplate | None
    around: tuple[tuple[int, ...], tuple[int, ...]]
    """The special tokens that the tokenizer puts before and after a text."""
    beginning: int | None
    """The BOS token, whether or not the tokenizer adds it; None: there is none."""
    context_length: int
    reasoning: Reasoning | None = None
    """How its chats separate reasoning."""
    mark_ids: frozenset[int] = frozenset()
    """Tokens that are marks of that."""

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Text of token ids; special tokens are left out, or shown as they are written."""
        text: str = self.raw.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return text

    def written(self, token: int) -> str:
        """The token alone, special ones as they are written. For the device thread."""
        return self.pieces(token)[0]
