"""Where the messages of a chat are among its tokens: told by rendering its beginnings through the template."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import jinja2

from ..domain.refs import Turn

Message = dict[str, str]
Render = Callable[[Sequence[Message]], str]
"""Messages as the template writes them, no answer opened. Raises `jinja2.TemplateError`."""

MOST_MESSAGES = 128
"""Every beginning is rendered, so a chat of n messages costs n² of one."""
MARK = "\ue000"
"""Private: in no template and, as good as surely, in no message."""


def turns_of(
    messages: Sequence[Message], text: str, spans: Sequence[tuple[int, int]], render: Render
) -> tuple[Turn, ...] | None:
    """The messages' turns in `text`, whose tokens hold the characters `spans` [from, to).

    None where the template does not tell: a beginning of the chat is not written as the beginning of its text, a
    content not as it was said (but for blanks around it), or there are more than `MOST_MESSAGES`.
    """
    if len(messages) > MOST_MESSAGES:
        return None
    try:
        found = [_turn(messages, at, text, render) for at in range(len(messages))]
    except jinja2.TemplateError:
        return None
    starts = [start for start, _ in spans]
    turns = []
    for message, characters in zip(messages, found, strict=True):
        if characters is None:
            return None
        start, end, content, behind = characters
        first, stop = bisect_left(starts, start), bisect_left(starts, end)
        said = [at for at in range(first, stop) if spans[at][1] > content and spans[at][0] < behind]
        inside = (said[0], said[-1] + 1) if said else (stop, stop)
        turns.append(Turn(role=message["role"], first=first, stop=stop, content=inside))
    return tuple(turns)


def _turn(messages: Sequence[Message], at: int, text: str, render: Render) -> tuple[int, int, int, int] | None:
    """Characters of message `at`: begin and end of its turn, begin and end of what is said."""
    before = render(messages[:at]) if at else ""
    whole = render(messages[: at + 1])
    marked = render([*messages[:at], {**messages[at], "content": MARK}])
    if not (whole.startswith(before) and text.startswith(whole) and marked.startswith(before)):
        return None
    head, mark, tail = marked[len(before) :].partition(MARK)
    turn, content = whole[len(before) :], messages[at]["content"]
    if not mark or MARK in tail:
        return None
    said = next((each for each in (content, content.strip()) if turn == head + each + tail), None)
    if said is None:
        return None
    start = 0 if at else _unasked(messages[0], head, render)
    content_at = len(before) + len(head)
    return len(before) + start, len(whole), content_at, content_at + len(said)


def _unasked(message: Message, head: str, render: Render) -> int:
    """Characters that the template puts before the first turn on its own, such as a system message of its own: what
    is not there when the same message comes later."""
    earlier = [message, {"role": "assistant", "content": MARK}]
    try:
        before, whole = render(earlier), render([*earlier, {**message, "content": MARK}])
    except jinja2.TemplateError:
        return 0
    later = whole[len(before) :].partition(MARK)[0]
    return len(head) - len(later) if whole.startswith(before) and later and head.endswith(later) else 0
