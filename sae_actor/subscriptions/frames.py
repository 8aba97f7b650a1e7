"""Server-sent events, each encoded once, and the filter of a subscription."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ..domain.events.mentions import sae_ids
from ..ports import Progress


class Frame:
    """One server-sent event. `position` is None for what is not in the log."""

    __slots__ = ("_sae_ids", "data", "position", "principal", "type")

    def __init__(self, position: int | None, event_type: str, data: bytes, principal: str | None = None) -> None:
        self.position = position
        self.type = event_type
        self.data = data
        self.principal = principal
        self._sae_ids: frozenset[str] | None = None

    @property
    def sae_ids(self) -> frozenset[str]:
        """The SAEs that it names; computed once, when the first reader needs them."""
        if self._sae_ids is None:
            self._sae_ids = sae_ids(self.data.rpartition(b"\ndata: ")[2])
        return self._sae_ids


class EventFilter(NamedTuple):
    """The filter of a subscription: all events, only some types, or only those of one SAE."""

    types: frozenset[str] | None = None
    sae_id: str | None = None
    texts_of: str | None = None
    """Of generations only those that this principal requested."""

    def takes(self, frame: Frame) -> bool:
        if self.types is not None and frame.type not in self.types:
            return False
        if self.texts_of not in (None, frame.principal) and frame.type in ("GenerationStarted", "GenerationFinished"):
            return False
        return self.sae_id is None or self.sae_id in frame.sae_ids


EVERYTHING = EventFilter()


_BREAKS = ((b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"), (b"\xc2\x85", rb"\u0085"))
"""Characters that JSON may hold as they are, and at which some readers end a line, as Python's `splitlines` does."""


def line_of(value: object) -> bytes:
    """`value` as JSON, which no reader takes for more than one line."""
    data = msgspec.json.encode(value)
    for raw, escaped in _BREAKS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def sse(event_type: str | None, value: object, event_id: str | None = None) -> bytes:
    """The bytes of one server-sent event, whose data is `value` as JSON."""
    head = b"" if event_id is None else b"id: " + event_id.encode() + b"\n"
    head += b"" if event_type is None else b"event: " + event_type.encode() + b"\n"
    return head + b"data: " + line_of(value) + b"\n\n"


def progress_frame(progress: Progress) -> tuple[str, dict[str, Any]]:
    """Type and data of the frame that shows how far something is."""
    subject, phase, done, total = progress.subject, progress.phase, progress.done, progress.total
    if progress.kind == "load":
        return "model_progress", {"model": subject, "stage": phase}
    if progress.kind == "run":
        shown: dict[str, Any] = {"run_id": subject, "phase": phase, "done": done, "total": total or None}
        return "run_progress", shown if progress.reason is None else {**shown, "reason": progress.reason}
    now: dict[str, Any] = {name: getattr(progress, name) for name in ("rate", "seconds_left", "file")}
    if progress.reason is not None:
        now["reason"] = progress.reason
    if progress.kind == "fetch":
        size = {"phase": phase, "bytes": done, "total_bytes": total or None}
        return "model_progress", {"model": subject, "stage": "fetching", **size, **now}
    return "download_progress", {"sae_id": subject, "phase": phase, "bytes": done, "total": total, **now}
