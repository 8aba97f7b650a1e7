"""What every payload is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct

MAX_PAYLOAD_BYTES = 255 * 1024
"""Of one payload as JSON. A log takes 256 KiB for an event: payload, type, ids, time and principal."""


class Problem(Struct, frozen=True):
    """Why something failed: a code of `errors` and a detail; never an exception's repr."""

    code: str
    detail: str
    fields: dict[str, Any] = {}


class Payload(Struct, frozen=True, kw_only=True):
    """The `data` of an event. The event's `type` is the class name."""

    schema: ClassVar[int] = 1  # raised with an entry in `upcasting`
    type: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.type = cls.__name__


class Intent(Payload, frozen=True, kw_only=True):
    request_sha256: str = ""
