"""Token ids to text as it becomes readable: no half characters, no half stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What decoders put for bytes that are no character, such as the first bytes of one that is not complete."""

Decode = Callable[[list[int]], str]


class TextDecoder:
    """Turns tokens into text one by one.

    Only a short window is decoded each time: the tokens of the last piece shown and those behind it, so that
    a decoder that treats the first token of a text apart (a leading space dropped) treats both sides alike.
    The first window is the end of the prompt: the text is what follows the prompt.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-8:])
        self._boundary = len(self._ids)
        self._shown = decode(self._ids)

    def push(self, token: int) -> str:
        """The text that became readable with this token; empty while a character is not complete."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT):
            return ""
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

    def _behind_shown(self, text: str) -> str:
        # A prompt that ends within a character shows U+FFFD there until the answer completes it.
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        same = (i for i, (a, b) in enumerate(zip(self._shown, text, strict=False)) if a != b)
        return text[next(same, len(text)) :]


class StopStrings:
    """Cuts a text before the first stop string, and holds back what could become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """What may be shown of the text so far, and whether a stop string was met (all behind it is dropped)."""
        text = self._held + piece
        found = [at for at in (text.find(each) for each in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((n for each in self._stop for n in range(len(each)) if text.endswith(each[:n])), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held
