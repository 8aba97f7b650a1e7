"""Token ids to text as it becomes readable, without partial characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are not a character, such as the first bytes of an incomplete one."""

MOST_HALF = 3
"""Replacements at the end of a text that one more token may still complete: a character has at most four bytes."""

Decode = Callable[[list[int]], str]


class IncrementalDetokenizer:
    """Turns tokens into text one by one.

    Only a short window is decoded each time: the tokens of the last piece shown and those after it. So a
    decoder that treats the first token of a text specially (a dropped leading space) treats both sides alike. The
    first window is the end of the prompt.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-8:])
        self._boundary = len(self._ids)
        self._shown = decode(self._ids)

    def push(self, token: int) -> str:
        """The text that became readable with this token, up to an incomplete character."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT):
            return self._settled(text)
        piece = self._behind_shown(text)
        if piece:
            self._ids = self._ids[self._boundary :]
            self._boundary = len(self._ids)
            self._shown = self._decode(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        text = self._decode(self._ids)
        piece = self._behind_shown(text)
        self._shown = text
        return piece

    def _settled(self, text: str) -> str:
        """The new part of `text` that stays, whatever follows its last replacements."""
        settled = text[: len(text) - min(MOST_HALF, len(text) - len(text.rstrip(REPLACEMENT)))]
        # A decoder may show complete characters as broken next to a partial one, until that is complete.
        if len(settled) <= len(self._shown) or not settled.startswith(self._shown):
            return ""
        piece = settled[len(self._shown) :]
        self._shown = settled
        return piece

    def _behind_shown(self, text: str) -> str:
        # A prompt that ends within a character shows U+FFFD there until the answer completes it.
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        same = (i for i, (a, b) in enumerate(zip(self._shown, text, strict=False)) if a != b)
        return text[next(same, len(text)) :]
