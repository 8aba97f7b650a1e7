"""Single tokens as they are written, in characters and in bytes."""

from __future__ import annotations

import re
from typing import Any

from .detokenizer import REPLACEMENT

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {**{chr(byte): byte for byte in _PRINTABLE}, **{chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}}
"""Byte-level vocabularies (GPT-2's way) write each byte as one printable character: that character → the byte."""

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece vocabularies write a byte."""
_SPACE = "\u2581"
"""SentencePiece's space; a decoder drops it at the beginning of a text, and a token alone is one."""


class TokenTexts:
    """Text and bytes of each token of a tokenizer, cached. Used by one thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes | None]] = {}

    def __call__(self, token: int) -> tuple[str, bytes | None]:
        """Text of the token, special ones as they are written, and its bytes.

        A part of a character is U+FFFD in the text; its bytes are those of the vocabulary, None if it has none.
        """
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._looked_up(token)
        return known

    def text(self, token: int) -> str:
        """Its text alone."""
        return self(token)[0]

    def _looked_up(self, token: int) -> tuple[str, bytes | None]:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        written: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:
            return text, text.encode()
        if written.startswith(_SPACE) and not text.startswith(" "):
            text = f" {text}"
        if REPLACEMENT not in text:
            return text, text.encode()
        fallback = _FALLBACK.fullmatch(written)
        if fallback is not None:
            return text, bytes.fromhex(fallback.group(1))
        if all(character in BYTE_OF for character in written):
            return text, bytes(BYTE_OF[character] for character in written)
        return text, None
