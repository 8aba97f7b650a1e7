"""Marks in the contents of messages, so that a rendering of the chat shows where each is written.

A template tests what it writes (`'</think>' in content`, `content | length`), changes it and splits it. It sees
`Marked` without the marks, and results keep them; joined to other text, they become characters of that text. Marks are
inside the blanks at the ends, so that joined text can still be trimmed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

Message = Mapping[str, Any]

_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
_FREE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""For private use: in no template and, as good as surely, in no message; those that are in one are not taken."""

SAID = frozenset({"content", "reasoning_content", "reasoning", "thinking"})
"""Keys of a message that hold its content."""


class Piece(NamedTuple):
    """Characters [start, end) of a rendering that are content of message `message`, or part of it."""

    message: int
    start: int
    end: int


class _Mark(NamedTuple):
    message: int
    opens: bool
    core: str
    blanks: str
    """The text on the outer side of the mark."""


class Marks:
    """The marks of one rendering."""

    def __init__(self, texts: Iterable[str], *, nothing: bool = True) -> None:
        """texts: what may be written; no character of it is a mark. nothing: what is blank is marked too."""
        self._nothing = nothing
        used = {each for text in texts for each in _PRIVATE.findall(text)}
        self._free = (each for each in map(chr, chain(*_FREE)) if each not in used)
        self._pairs: dict[tuple[int, str, bool], tuple[str, str]] = {}
        self._meanings: dict[str, _Mark] = {}

    def wrapped(self, text: str, message: int, *, blanks: bool = False) -> str:
        """The text with marks around what is not blank at its ends, or around the `blanks` too. `ValueError` if no
        mark is left."""
        core = text if blanks else text.strip()
        if not (core or self._nothing):
            return text
        lead = "" if blanks else text[: len(text) - len(text.lstrip())]
        trail = text[len(lead) + len(core) :]
        key = (message, text, blanks)
        if key not in self._pairs:
            opening, closing = next(self._free, ""), next(self._free, "")
            if not closing:
                raise ValueError("no marks are left")
            self._pairs[key] = opening, closing
            self._meanings[opening] = _Mark(message, True, core, lead)
            self._meanings[closing] = _Mark(message, False, core, trail)
        opening, closing = self._pairs[key]
        return f"{lead}{opening}{core}{closing}{trail}"

    def found(self, rendered: str, *, blanks: bool) -> tuple[str, list[Piece]]:
        """The rendering without the marks, and the pieces that they delimit, in order. `blanks`: blanks at the ends of
        contents were written too, if they are there."""
        parts, marks, at, behind = [], [], 0, 0
        for each in _PRIVATE.finditer(rendered):
            if (mark := self._meanings.get(each.group())) is None:
                continue
            parts.append(rendered[behind : each.start()])
            at += len(parts[-1])
            behind = each.end()
            marks.append((mark, at))
        parts.append(rendered[behind:])
        text = "".join(parts)
        return text, [_within_blanks(*each, text) if blanks else each[0] for each in _pieces(marks, text)]


def _within_blanks(piece: Piece, lead: str, trail: str, text: str) -> Piece:
    start = piece.start - len(lead) if text.endswith(lead, 0, piece.start) else piece.start
    end = piece.end + len(trail) if text.startswith(trail, piece.end) else piece.end
    return Piece(piece.message, start, end)


def _pieces(marks: Sequence[tuple[_Mark, int]], text: str) -> Iterator[tuple[Piece, str, str]]:
    """Each piece with the blanks around it. One that lost a mark, because a template trimmed it, reaches as far as the
    text agrees with the content."""
    at = 0
    while at < len(marks):
        mark, start = marks[at]
        other, end = marks[at + 1] if at + 1 < len(marks) else (None, len(text))
        if not mark.opens:
            floor = marks[at - 1][1] if at else 0
            cut = text[start - agree(text[floor:start][::-1], mark.core[::-1]) : start]
            yield Piece(mark.message, start - len(cut.lstrip()), start), "", mark.blanks
        elif other is not None and not other.opens and other.message == mark.message and other.core == mark.core:
            yield Piece(mark.message, start, end), mark.blanks, other.blanks
            at += 1
        else:
            cut = text[start : start + agree(text[start:end], mark.core)]
            yield Piece(mark.message, start, start + len(cut.rstrip())), mark.blanks, ""
        at += 1


def agree(one: str, other: str) -> int:
    """Length of the beginning that both have."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Marked(str):
    """A message's content; a template sees the text without the marks."""

    seen: str
    message: int
    marks: Marks

    def __new__(cls, seen: str, message: int, marks: Marks) -> Marked:
        self = super().__new__(cls, marks.wrapped(seen, message))
        self.seen, self.message, self.marks = seen, message, marks
        return self

    def again(self, made: Any) -> Any:
        """A result of the text, marked as it is."""
        if isinstance(made, str):
            return Marked(made, self.message, self.marks)
        return type(made)(map(self.again, made)) if isinstance(made, list | tuple) else made

    def __iter__(self) -> Iterator[str]:
        return map(self.again, self.seen)


def _on_seen(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: Marked, *args: Any, **more: Any) -> Any:
        return self.again(plain(self.seen, *(each.seen if isinstance(each, Marked) else each for each in args), **more))

    return method


_LEFT = frozenset({"encode", "format", "format_map", "join", "maketrans"})
_OPERATORS = ("contains", "eq", "ne", "lt", "le", "gt", "ge", "len", "getitem", "hash")
for _name in (each for each in dir(str) if each[0] != "_" and each not in _LEFT):
    setattr(Marked, _name, _on_seen(_name))
for _name in _OPERATORS:
    setattr(Marked, f"__{_name}__", _on_seen(f"__{_name}__"))


def said(message: Message) -> dict[str, str]:
    """The texts of a message, by key."""
    return {key: text for key, text in message.items() if key in SAID and isinstance(text, str)}
