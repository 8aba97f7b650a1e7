"""Control tokens: those of a template, and text that merely spells one.

A message's content is text, even if it spells a special token. A second tokenizer, made on demand, is the model's own
except for the names of its control tokens, which are private-use characters. The template's are written so; it reads
what a message spells as text, and everything else, borders included, as before.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import tokenizers

from ...errors import BadRequestError

_PRIVATE = (range(0x100000, 0x108000), range(0x108000, 0x10FFFE), range(0xF0000, 0xF8000))
"""Three sets of names, in case a text holds some of one."""


class Saying(NamedTuple):
    """Characters [start, end) of a message's content."""

    start: int
    end: int
    own: bool = False
    """By the assistant: tokens of its own, such as those around thoughts, stay what they are unless special."""


class Encoded(NamedTuple):
    """Token ids, and the characters [from, to) that each holds."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Control(NamedTuple):
    """Characters [start, end) of a text that are a control token to the tokenizer."""

    start: int
    end: int
    name: str


class Controls:
    """The control tokens of a tokenizer: the special ones, and those that its chat template names."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        added = {each.content: (token, each.special) for token, each in tokenizer.added_tokens_decoder.items()}
        self._added = {name: token for name, (token, _) in added.items()}
        self._special = {name for name, (_, special) in added.items() if special}
        named = {name for name in added if name in template and not name.isspace()}
        self._names = {self._added[name]: name for name in self._special | named}
        longest_first = sorted(map(re.escape, self._names.values()), key=len, reverse=True)
        self._spelled = re.compile("|".join(longest_first)) if longest_first else None
        self._made: dict[int, tokenizers.Tokenizer] = {}
        """The tokenizer under other names, by which of the sets they are from."""

    def spelled(self, text: str) -> bool:
        """Whether the text spells a control token, even if the tokenizer does not read it as one there."""
        return self._spelled is not None and self._spelled.search(text) is not None

    def among(self, text: str, read: Encoded) -> list[Control]:
        """Those that the tokenizer found in a text. Unknown text has the id of one, but not its name."""
        found = []
        for each, (start, end) in zip(read.ids, read.spans, strict=True):
            name = self._names.get(each)
            if name is not None and (at := text.find(name, start, end)) >= 0:
                found.append(Control(at, at + len(name), name))
        return found

    def forged(self, found: Control, said: Sequence[Saying]) -> bool:
        """Whether it overlaps a message's content. `said`: in order."""
        at = bisect_right(said, found.end - 1, key=lambda each: each.start) - 1
        if at < 0 or said[at].end <= found.start:
            return False
        return found.name in self._special or not said[at].own

    def as_text(self, text: str, read: Encoded, said: Sequence[Saying]) -> Encoded:
        """The tokens of a text that was `read`, with forged control tokens as text.

        `BadRequestError` if the tokenizer cannot keep the two apart.
        """
        names, backend = self._renamed(text)
        parts: list[str] = []
        ends: list[int] = []
        behind = 0
        for each in self.among(text, read):
            if not self.forged(each, said):
                parts += [text[behind : each.start], names[each.name]]
                behind = each.end
                ends.append(behind)
        parts.append(text[behind:])
        encoding = backend.encode("".join(parts), add_special_tokens=False)
        written = list(accumulate(map(len, parts)))[:-1:2]
        spans = [
            (_moved_back(start, written, ends), _moved_back(end, written, ends)) for start, end in encoding.offsets
        ]
        ids = {backend.token_to_id(names.get(name, name)): token for name, token in self._added.items()}
        if any(each not in ids and self._names.get(each) == text[slice(*span)].strip()
               for each, span in zip(encoding.ids, spans, strict=True)):  # fmt: skip
            # Of a vocabulary that holds it as a word.
            message = "a message spells a token that this tokenizer cannot read as text"
            raise BadRequestError(message, param="messages")
        return Encoded([ids.get(each, each) for each in encoding.ids], spans)

    def _renamed(self, text: str) -> tuple[dict[str, str], tokenizers.Tokenizer]:
        for which, free in enumerate(_PRIVATE):
            names = dict(zip(self._names.values(), map(chr, free), strict=False))
            if len(names) == len(self._names) and not any(each in text for each in names.values()):
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
