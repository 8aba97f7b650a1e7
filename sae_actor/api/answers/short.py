"""JSON answers with the ETag of their state."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response

from ...domain.state import State
from ..context import context
from ..types import Answer, AnyRequest


def answer(request: AnyRequest, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """JSON with the ETag of the state that it was taken from."""
    return Response(
        content=msgspec.json.encode(value),
        status_code=status,
        media_type="application/json",
        headers={"etag": f'"{state_of(request).revision}"', "cache-control": "no-store", **(headers or {})},
    )


def state_of(request: AnyRequest) -> State:
    return context(request).actor.state
