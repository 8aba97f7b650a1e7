"""Positions and times of a log, as requests name them; the state then."""

from __future__ import annotations

from ....domain.state import State
from ....errors import BadRequestError, NotFoundError
from ....ports.clock import as_rfc3339
from ...answers import state_of
from ...context import context
from ...requests import MAX_POSITION, whole_number
from ...types import AnyRequest

POSITION = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}
MOMENT = {"anyOf": [POSITION, {"type": "string", "format": "date-time"}]}
"""A position, or a time: then the last event written at that time or before."""


async def position_of(request: AnyRequest, name: str, head: int) -> int:
    """The position that a query parameter names, by itself or by a time. Without it `head`.

    Raises `NotFoundError` past the head, `BadRequestError` for what is neither.
    """
    given = request.query_params.get(name)
    if given is None or given.lstrip("+-").isdigit():
        at = whole_number(request, name, default=head, low=0, high=MAX_POSITION)
        if at > head:
            raise NotFoundError(f"position {at} is past the head {head}", head=head)
        return at
    time = as_rfc3339(given[:11] + given[11:].replace(" ", "+"))  # a plus sign that was not escaped
    if time is None:
        raise BadRequestError(f"{name} must be a position, or a time such as 2026-01-31T12:00:00Z", param=name)
    return await context(request).finder.last_by(time, head)


async def state_at(request: AnyRequest, at: int) -> State:
    """The state at a position up to the head."""
    now = state_of(request)
    return now if at == now.position else await context(request).past.state(context(request).finder, at)
