"""Control tokens: those of a template, and text that merely reads like one.

What a message says is text, also where it spells a special token. A second tokenizer, made once it is needed, is the
model's own but for the names of its control tokens: they are characters for private use. Those of the template are
written so; what a message spells is no token to it, and all else, the borders too, is as it was.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import tokenizers

from ..errors import BadRequestError

_PRIVATE = (range(0x100000, 0x108000), range(0x108000, 0x10FFFE), range(0xF0000, 0xF8000))
"""Three sets of names, for a text that holds some of one."""


class Saying(NamedTuple):
    """Characters [start, end) that a message says."""

    start: int
    end: int
    own: bool = False
    """By the assistant: tokens of its own, such as those around thoughts, stay what they are unless special."""


class Encoded(NamedTuple):
    """Token ids, and the characters [from, to) that each holds."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Controls:
    """The control tokens of a tokenizer: the special ones, and those that its chat template names."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        added = tokenizer.added_tokens_decoder
        special = {str(token) for each, token in added.items() if token.special}
        named = {str(token) for token in added.values() if str(token) in template and not str(token).isspace()}
        self._special = special
        self.ids = {str(token): each for each, token in added.items() if str(token) in special | named}
        longest_first = sorted(map(re.escape, self.ids), key=len, reverse=True)
        self._spelled = re.compile("|".join(longest_first)) if longest_first else None
        self._made: dict[int, tokenizers.Tokenizer] = {}
        """The tokenizer under other names, by which of the sets they are from."""

    def spelled(self, text: str, said: Sequence[Saying]) -> bool:
        """Whether some of what is said spells, or helps to spell, a control token."""
        return any(self._within(found, said) for found in self._found(text))

    def encoded(self, text: str, said: Sequence[Saying]) -> Encoded:
        """The text as tokens, where what is said holds no control token. `said`: in order.

        `BadRequestError` where the tokenizer cannot keep the two apart.
        """
        names, backend = self._renamed(text)
        parts: list[str] = []
        ends: list[int] = []
        behind = 0
        for found in self._found(text):
            if not self._within(found, said):
                parts += [text[behind : found.start()], names[found.group()]]
                behind = found.end()
                ends.append(behind)
        parts.append(text[behind:])
        encoding = backend.encode("".join(parts), add_special_tokens=False)
        ids = {backend.token_to_id(name): self.ids[token] for token, name in names.items()}
        if any(self._tokenizer_has(each, ids) for each in encoding.ids):
            raise BadRequestError("a message spells a token that this tokenizer cannot read as text", param="messages")
        written = list(accumulate(map(len, parts)))[:-1:2]
        spans = [
            (_moved_back(start, written, ends), _moved_back(end, written, ends)) for start, end in encoding.offsets
        ]
        return Encoded([ids.get(each, each) for each in encoding.ids], spans)

    def _tokenizer_has(self, found: int, renamed: dict[int, int]) -> bool:
        """Whether it is a control token by its own name: of vocabularies that hold them as words."""
        return found not in renamed and found in self.ids.values()

    def _found(self, text: str) -> list[re.Match[str]]:
        return [] if self._spelled is None else list(self._spelled.finditer(text))

    def _within(self, found: re.Match[str], said: Sequence[Saying]) -> bool:
        at = bisect_right(said, found.end() - 1, key=lambda each: each.start) - 1
        if at < 0 or said[at].end <= found.start():
            return False
        return found.group() in self._special or not said[at].own

    def _renamed(self, text: str) -> tuple[dict[str, str], tokenizers.Tokenizer]:
        for which, free in enumerate(_PRIVATE):
            names = dict(zip(self.ids, map(chr, free), strict=False))
            if len(names) == len(self.ids) and not any(each in text for each in names.values()):
                if which not in self._made:
                    self._made[which] = self._make(names)
                return names, self._made[which]
        raise BadRequestError("a message holds too many characters for private use", param="messages")

    def _make(self, names: dict[str, str]) -> tokenizers.Tokenizer:
        described = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in described["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        described["post_processor"] = described["truncation"] = described["padding"] = None
        return tokenizers.Tokenizer.from_str(json.dumps(described))


def _moved_back(at: int, names: Sequence[int], ends: Sequence[int]) -> int:
    """A place of the text with other names, each of one character at `names`, in the one whose tokens end at `ends`."""
    n = bisect_right(names, at - 1)
    return at if n == 0 else ends[n - 1] + at - names[n - 1] - 1
