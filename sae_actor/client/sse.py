"""Server-sent events out of a byte stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class StreamEvent(NamedTuple):
    """One frame of a stream: in `/api/events` `id` is None for what is not in the log (progress, `reset`)."""

    id: str | None
    type: str
    data: Any
    """Text as it was sent, and JSON that has been read from it."""


def frames(chunks: Iterable[bytes]) -> Iterator[StreamEvent]:
    """The events of a stream; comments and an unfinished last frame are left out."""
    event_id: str | None = None
    event_type = "message"
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield StreamEvent(event_id, event_type, "\n".join(data))
            event_id, event_type, data = None, "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id":
                event_id = value
            case "event":
                event_type = value
            case "data":
                data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines as the standard of these events cuts them: JSON may hold further separators that `splitlines` knows."""
    begun: list[bytes] = []
    half = b""
    for chunk in chunks:
        *ends, rest = re.split(rb"\r\n|\n|\r(?!\Z)", half + chunk)
        # a CR at the end may be half a line end: it waits for the next chunk
        half = rest[-1:] if rest.endswith(b"\r") else b""
        for end in ends:
            yield b"".join((*begun, end)).decode("utf-8", "replace")
            begun = []
        begun.append(rest.removesuffix(b"\r"))
