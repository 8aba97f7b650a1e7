"""Where the messages of a chat are among its tokens.

Marks in one rendering of the chat (`chat_templates`) show each message's content. What the template writes around it
belongs to the message before or after. A message ends as the chat that stops there ends. It begins with what the
template writes before every message of its role. A system message that the template puts into another one is a span
within that span.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from ...domain.chats import MessageSpan
from .chat_templates import FAILURES, ChatTemplate, Rendering
from .marks import Message, Piece, agree

SYSTEM = ("system", "developer")
MOST_ENDS = 32
"""Of one chat, each is a rendering: a template has a few, one for each role that comes after each other."""

_SAID: Mapping[str, str] = {"system": "Be kind.", "user": "How are you?", "assistant": "Well, thanks."}
"""Contents of the chats that probe a template."""


class Area(NamedTuple):
    """Characters [start, stop) of a message, and the pieces of its content."""

    role: str
    start: int
    stop: int
    pieces: tuple[Piece, ...]


def turns_of(
    messages: Sequence[Message], rendering: Rendering, spans: Sequence[tuple[int, int]], template: ChatTemplate
) -> tuple[MessageSpan, ...] | None:
    """The messages' spans in the rendering, opened for an answer, whose tokens hold the characters `spans` [from, to).
    A message that the template leaves out has none. None if the template does not show them."""
    if not rendering.pieces:
        return None
    starts = [start for start, _ in spans]
    areas = _Areas(messages, rendering, template, starts).found()
    return tuple(_turn(area, spans, starts) for area in sorted(areas, key=lambda each: (each.start, -each.stop)))


def _turn(area: Area, spans: Sequence[tuple[int, int]], starts: Sequence[int]) -> MessageSpan:
    first, stop = bisect_left(starts, area.start), bisect_left(starts, area.stop)
    ranges = []
    for piece in area.pieces:
        at = max(first, bisect_left(starts, piece.start) - 1)
        places = range(at, min(stop, bisect_left(starts, piece.end)))
        inside = [n for n in places if spans[n][0] < piece.end and spans[n][1] > piece.start]
        if inside:
            ranges.append((inside[0], inside[-1] + 1))
    whole = (ranges[0][0], ranges[-1][1]) if ranges else (stop, stop)
    return MessageSpan(
        role=area.role, first=first, stop=stop, content=whole, parts=tuple(ranges) if len(ranges) > 1 else ()
    )


class _Areas:
    """The areas of one chat."""

    def __init__(
        self,
        messages: Sequence[Message],
        rendering: Rendering,
        template: ChatTemplate,
        borders: Sequence[int] = (),
        *,
        probing: bool = False,
    ) -> None:
        """borders: where tokens begin. probing: this chat probes the template."""
        self._messages = messages
        self._text = rendering.text
        self._template = template
        self._borders = borders
        self._probing = probing
        self._groups = [tuple(group) for _, group in groupby(rendering.pieces or (), lambda piece: piece.message)]
        """Adjacent pieces of one message."""
        edges = [0, *(edge for group in self._groups for edge in (group[0].start, group[-1].end)), len(self._text)]
        self._gaps = [(edges[at], edges[at + 1]) for at in range(0, len(edges), 2)]
        """Around the groups, one more than those: what the template writes."""
        self._ends: dict[tuple[str, str], str | None] = {}

    def found(self) -> list[Area]:
        """One area for each group."""
        for at in range(len(self._groups)):
            if self._role(at) in SYSTEM and self._end(at) is None and (areas := self._around(at)) is not None:
                return areas
        heads, cuts = self.heads(), self._cuts()
        roles = [self._role(at) for at in range(len(self._groups))]
        seen = {role: self._known(role) | {each for each, n in zip(heads, roles, strict=True) if n == role}
                for role in set(roles)}  # fmt: skip
        own = [self._own(at, heads[at], seen[role]) for at, role in enumerate(roles)]
        return [
            Area(self._role(at), group[0].start - len(head), self._gaps[at + 1][0] + cut, group)
            for at, (group, head, cut) in enumerate(zip(self._groups, own, cuts, strict=True))
        ]

    def heads(self) -> list[str]:
        """What is written before each group, after the end of the one before."""
        cuts = [0, *self._cuts()]
        return [self._gap(at)[cuts[at] :].removeprefix(self._template.beginning) for at in range(len(self._groups))]

    @property
    def order(self) -> list[int]:
        """Which message each group is of."""
        return [group[0].message for group in self._groups]

    def _role(self, at: int) -> str:
        return str(self._messages[self._groups[at][0].message].get("role", ""))

    def _gap(self, at: int) -> str:
        start, stop = self._gaps[at]
        return self._text[start:stop]

    # — where a message ends —

    def _cuts(self) -> list[int]:
        """Characters of the gap after each group that belong to it."""
        ends = [self._end(at) for at in range(len(self._groups))]
        known = [each for each in ends if each]
        return [self._cut(at, known) if end is None else len(end) for at, end in enumerate(ends)]

    def _end(self, at: int) -> str | None:
        """The end of the message: that of the chat that stops with it, if the whole continues with it; else what
        precedes the known beginning of the next one."""
        key = (self._role(at), self._gap(at + 1))
        if key not in self._ends:
            tried = (self._template, self._template.bare) if len(self._ends) < MOST_ENDS else ()
            closed = (_behind(template, self._upto(at)) for template in tried if template is not None)
            found = next((each for each in closed if each is not None and key[1].startswith(each)), None)
            if found is None and at + 1 < len(self._groups):
                heads = {each for each in self._known(self._role(at + 1)) if key[1].endswith(each)}
                found = key[1].removesuffix(max(heads, key=len)) if heads else None
            self._ends[key] = found
        return self._ends[key]

    def _upto(self, at: int) -> Sequence[Message]:
        return self._messages[: self._groups[at][-1].message + 1]

    def _known(self, role: str) -> frozenset[str]:
        return frozenset() if self._probing else _heads_of(role, self._template)

    def _cut(self, at: int, ends: Sequence[str]) -> int:
        """The end is unknown if a chat that stops ends differently, with a mark for that. Then it ends as other
        messages do, or with as many tokens as both have."""
        gap, start = self._gap(at + 1), self._gaps[at + 1][0]
        if known := {end for end in ends if gap.startswith(end)}:
            return max(map(len, known))
        same = agree(gap, _behind(self._template, self._upto(at)) or "")
        border = bisect_left(self._borders, start + same + 1) - 1
        return min(same, max(0, self._borders[border] - start)) if border >= 0 else same

    # — where it begins —

    def _own(self, at: int, head: str, others: Iterable[str]) -> str:
        """What is written before the group for its role, as before `others` of that: without what comes there but once,
        such as tools, or a system message of the template's own."""
        if at == 0 and self._role(at) in SYSTEM and len(self._messages) > 1:
            head = self._without(head)
        known = {each for each in others if each.strip() and each in head and each != head}
        return head[max(map(head.rfind, known), default=0) :]

    def _without(self, head: str) -> str:
        """The head of the first message without what the template writes when that is not there too."""
        end = self._end(0)
        for template in (self._template, self._template.bare):
            rest = None if template is None else _left(template, self._messages, self.order[0])
            if end is None or rest is None or not rest.pieces:
                continue
            between = rest.text[: rest.pieces[0].start].removeprefix(self._template.beginning)
            common = between.removesuffix(self._gap(1)[len(end) :])
            if common and common != between and head.startswith(common):
                return head.removeprefix(common)
        return head

    # — messages within messages —

    def _around(self, at: int) -> list[Area] | None:
        """The areas if the message at `at` is within another: those of the chat without it, and it between them. None
        if the chat without it differs elsewhere too."""
        group = self._groups[at]
        left = _left(self._template, self._messages, group[0].message)
        if left is None or not left.pieces:
            return None
        kept = [each for n, each in enumerate(self._messages) if n != group[0].message]
        rest = _Areas(kept, left, self._template)
        if len(rest._groups) != len(self._groups) - 1:
            return None
        before, behind, between = self._gap(at), self._gap(at + 1), rest._gap(at)
        most = agree(before, between)
        split = next((n for n in range(most, -1, -1) if behind.endswith(between[n:])), None)
        if split is None:
            return None
        start = self._gaps[at][0] + split
        stop = self._gaps[at + 1][1] - (len(between) - split)
        longer = stop - start
        if self._text[:start] + self._text[stop:] != left.text:
            return None

        def moved(area: Area) -> Area:
            pieces = tuple(
                Piece(self._numbered(piece.message, group[0].message), *_shifted(piece.start, piece.end, start, longer))
                for piece in area.pieces
            )
            return Area(area.role, *_shifted(area.start, area.stop, start, longer), pieces)

        return [Area(self._role(at), start, stop, group), *map(moved, rest.found())]

    @staticmethod
    def _numbered(message: int, without: int) -> int:
        return message + (message >= without)


def _heads_of(role: str, template: ChatTemplate) -> frozenset[str]:
    """What the template writes before messages of the role, the first and a later one."""
    if role not in template.heads:
        other = "assistant" if role == "user" else "user"
        chat = [{"role": each, "content": _SAID.get(each, "Yes.")} for each in (role, other, role)]
        try:
            rendering = template.rendered(chat)
            areas = _Areas(chat, rendering, template, template.borders(rendering.text), probing=True)
        except FAILURES:
            template.heads[role] = frozenset()
        else:
            heads = areas.heads() if areas.order == [0, 1, 2] else []
            template.heads[role] = frozenset(each for each in heads[::2] if each.strip())
    return template.heads[role]


def _shifted(start: int, stop: int, at: int, by: int) -> tuple[int, int]:
    """Places after `by` characters came in at `at`."""
    return start + by * (start >= at), stop + by * (stop > at)


def _behind(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    """What is written after the last message, if that one is written, and as the last."""
    try:
        text, pieces = template.rendered(messages)
    except FAILURES:
        return None
    return text[pieces[-1].end :] if pieces and pieces[-1].message == len(messages) - 1 else None


def _left(template: ChatTemplate, messages: Sequence[Message], at: int) -> Rendering | None:
    """The chat without one message, opened."""
    try:
        return template.rendered([each for n, each in enumerate(messages) if n != at], opened=True)
    except FAILURES:
        return None


# — whether a template shows the messages —

_TRIED = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


def tells(template: ChatTemplate, chats: Iterable[Sequence[str]] = _TRIED) -> bool:
    """Whether messages are found in chats of one to three messages; refused chats do not count."""
    if not template.has_places:
        return False
    for roles in chats:
        try:
            rendering = template.rendered([{"role": role, "content": _SAID[role]} for role in roles], opened=True)
        except FAILURES:
            continue
        if not rendering.pieces:
            return False
    return True
